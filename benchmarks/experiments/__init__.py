"""What the parts are worth: measurements on trained models, for the page lessons/experiments.md."""
