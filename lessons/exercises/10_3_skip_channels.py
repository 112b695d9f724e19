"""Exercise 10.3: the stack of skips, counted in channels.

On the way down put on the stack: the output of conv_in (as wide as the first level); then, on each
level, the output of each of its ResBlocks; then, on every level but the last, that of its shrinking
convolution (as wide as its level).

On the way up, from the last level to the first, stand layers + 1 ResBlocks on each level. Each
takes the top of the stack, appends it to what comes in, and makes of both as many channels as its
level has. What comes in at first, from the middle, is as wide as the last level; resizing changes
no channels.
"""

import numpy as np


def skip_channels(widths, layers):
    """Channels that each ResBlock on the way up receives, its skip included.

    widths: channels of each level, from the finest to the coarsest; layers: ResBlocks of a level
    on the way down. Returns an array (levels, layers + 1) of whole numbers: a row for each level
    on the way up, coarsest first.
    """
    # About 10 lines: push, then pop.
    raise NotImplementedError
