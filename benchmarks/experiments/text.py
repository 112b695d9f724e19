"""The words of the page, with the numbers they speak of taken from the results."""

HEAD = """# What the parts are worth

Measured on the model that ships, by `make experiments` (an hour and a half on two cores, after
`make train-mnist`; interrupted, it goes on where it was). Each row of a table is one measurement,
and `python -m benchmarks.experiments EXPERIMENT/ROW` repeats it. The numbers themselves are in
[experiments.json](experiments.json).

Unless a table says otherwise: 500 samples of the full captions of 500 test digits, 20 steps of
dpmpp_2m, guidance 2.4 for 0.3 < sigma <= 5, one seed that had no part in choosing any of this.
"digit", "slant", "stroke": how many samples are as asked. "distance": the Fréchet distance between
their features in the reader and those of the other 9,500 test digits; it is biased, and 500 perfect
samples would have the *floor* on the average, so it is given in multiples of that too. With 500
samples a share near 90% has a standard error of 1.3 points.
"""

WORDS = {
    "samplers": ("Samplers", lambda rows: ""),
    "guidance": ("Guidance", lambda rows: ""),
    "classifier": ("Guidance by a classifier", lambda rows: ""),
    "spaces": ("Latents against pixels", lambda rows: ""),
    "parts": ("What each part is worth", lambda rows: ""),
    "composition": ("Combinations never seen", lambda rows: ""),
    "editing": ("Editing", lambda rows: ""),
    "words": ("Which word drew what", lambda rows: ""),
    "memory": ("Is it remembering?", lambda rows: ""),
}
