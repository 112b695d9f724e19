"""How the exercises of each lesson are checked: a list EXERCISES a lesson."""
