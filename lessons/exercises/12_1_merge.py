"""Exercise 12.1: one step of byte-pair encoding.

Count all pairs of neighbours in the text and choose the most frequent pair; among equally frequent
ones the smallest, by its first token, then by its second. Then replace its occurrences by a new
token, from left to right: with the pair (a, a), a a a becomes new a.
"""


def merge_step(text, blank, new):
    """text (T,), integers: token ids; `blank`, an id too, stands between words and never merges.

    Returns pair (2,), the ids of the chosen pair, and merged (T',), the text with `new` in it.
    """
    # About 12 lines: count, choose, then go through the text once. [*text] is a list of its ids.
    raise NotImplementedError
