"""Solutions of lesson 07 that the library has in another form."""

import numpy as np


def average(w, d):
    a, averages = 0, []
    for t, weights in enumerate(w, start=1):
        a = d * a + (1 - d) * weights
        averages.append(a / (1 - d**t))
    return np.array(averages)
