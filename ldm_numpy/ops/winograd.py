"""The 3x3 convolution with a quarter of the multiplications (Winograd's algorithm).

Two polynomials are multiplied most cheaply through their values: evaluate both at as many points as
the product has coefficients, multiply value by value, interpolate. With E_k the evaluation of k
coefficients at 6 points (one of them infinity, where the value is the leading coefficient),

    product of a (3) and b (4) = E_6^-1 [(E_3 a) * (E_4 b)]        6 multiplications, not 12.

A convolution as networks mean it is the transpose of that map in one argument: 4 outputs y of a
window of 6 inputs d with 3 weights g are

    y = A^T [(G g) * (B^T d)],    A^T = E_4^T,   G = E_3,   B^T = E_6^-T.

In two dimensions every matrix acts on rows and on columns, which is the product with its Kronecker
square: 36 multiplications for 4 x 4 outputs instead of 144. Summing over channels turns each of the
36 into a matrix product. (Winograd 1980, "Arithmetic complexity of computations"; Toom 1963; Cook
1966; for networks: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks")
"""

from functools import lru_cache

import numpy as np

from ..backend import array_module
from ..function import Function
from .linear import column_sum

TILE = 4  # outputs a tile has along each side
WINDOW = TILE + 2  # inputs that they depend on
# Points of about size 1 in reciprocal pairs: no power of them is large, so rounding errors stay
# below 1e-6 of the norm; 0, +-1, +-2, which make rounder matrices, have twice that.
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))


@lru_cache
def transforms(dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Kronecker squares of A^T (16, 36), G (36, 9) and B^T (36, 36)."""

    def evaluation(terms: int) -> np.ndarray:
        values = np.vander([*POINTS, 0.0], terms, increasing=True)
        values[-1] = np.eye(terms)[-1]  # infinity
        return values

    squares = evaluation(TILE).T, evaluation(3), np.linalg.inv(evaluation(WINDOW)).T
    return tuple(np.kron(m, m).astype(dtype) for m in squares)


def winograd_pays(x, w, stride: int) -> bool:
    """Whether a convolution of x (N, H, W, Cin) is faster this way than through its windows.

    Not with few input channels or few outputs, where transforming costs more than it saves; not
    where half of the tiles' area lies outside the image; and not on a GPU, where it would be five
    kernels in place of two.
    """
    n, height, width, c_in = x.shape
    fits = w.shape[:2] == (3, 3) and stride == 1 and isinstance(x, np.ndarray)
    outputs = height * width
    tiled = tiles_along(height) * tiles_along(width) * TILE**2
    return fits and c_in >= 16 and n * outputs >= 256 and 2 * outputs > tiled


def tiles_along(size: int) -> int:
    """Tiles that cover `size` outputs."""
    return -(-size // TILE)


def windows(x):
    """The 6 x 6 window of every tile: x (N, H, W, C) -> (N*tiles, 36, C), zeros around x.

    One strided copy, whose innermost run is a window's row: 6 C neighbours in memory.
    """
    xp = array_module(x)
    n, height, width, c = x.shape
    rows, columns = tiles_along(height), tiles_along(width)
    padded = xp.zeros((n, TILE * rows + 2, TILE * columns + 2, c), x.dtype)
    padded[:, 1 : height + 1, 1 : width + 1] = x
    s_n, s_h, s_w, s_c = padded.strides
    shape = (n, rows, columns, WINDOW, WINDOW * c)
    strides = (s_n, TILE * s_h, TILE * s_w, s_h, s_c)
    view = xp.lib.stride_tricks.as_strided(padded, shape, strides)
    return view.reshape(n * rows * columns, WINDOW * WINDOW, c)


def windows_adjoint(tiles, shape):
    """Adjoint of `windows`: (N*tiles, 36, C), which it writes to -> `shape`.

    A window overlaps its neighbours by two pixels, whose parts are added up where they lie in the
    window's middle, its pixels 1 to 4; the middles make up the image.
    """
    n, height, width, c = shape
    rows, columns = tiles_along(height), tiles_along(width)
    tiles = tiles.reshape(n, rows, columns, WINDOW, WINDOW, c)
    tiles[:, :-1, :, 4] += tiles[:, 1:, :, 0]  # from below
    tiles[:, 1:, :, 1] += tiles[:, :-1, :, 5]  # from above
    tiles[:, :, :-1, :, 4] += tiles[:, :, 1:, :, 0]  # from the right
    tiles[:, :, 1:, :, 1] += tiles[:, :, :-1, :, 5]  # from the left
    return join(tiles[:, :, :, 1:5, 1:5], shape)


def cut(y):
    """Outputs into tiles, zeros where they reach outside: (N, H, W, C) -> (N*tiles, 16, C)."""
    xp = array_module(y)
    n, height, width, c = y.shape
    rows, columns = tiles_along(height), tiles_along(width)
    if (height, width) != (TILE * rows, TILE * columns):
        whole = xp.zeros((n, TILE * rows, TILE * columns, c), y.dtype)
        whole[:, :height, :width] = y
        y = whole
    y = y.reshape(n, rows, TILE, columns, TILE, c).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n * rows * columns, TILE * TILE, c)


def join(tiles, shape, b=None):
    """The inverse of `cut`: (N*tiles, 16, C) -> `shape`, without what lies outside; plus b (C,), on
    the way, if there is one."""
    n, height, width, c = shape
    rows, columns = tiles_along(height), tiles_along(width)
    y = tiles.reshape(n, rows, columns, TILE, TILE, c).transpose(0, 1, 3, 2, 4, 5)
    if b is not None:
        xp = array_module(y)
        y = xp.add(y, b, out=xp.empty(y.shape, y.dtype))
    y = y.reshape(n, TILE * rows, TILE * columns, c)
    return y[:, :height, :width]


def matmul_at_points(a, b):
    """Products over channels, one a point: a (M, 36, I), b (36, I, J) -> (M, 36, J)."""
    y = array_module(a).empty((*a.shape[:2], b.shape[2]), a.dtype)
    array_module(a).matmul(a.swapaxes(0, 1), b, out=y.swapaxes(0, 1))
    return y


def weights_at_points(g, w):
    """G w, one matrix a point: w (3, 3, I, J) -> (36, I, J)."""
    return (g @ w.reshape(9, -1)).reshape(WINDOW**2, *w.shape[2:])


class WinogradConv2d(Function):
    """A 3x3 convolution, stride 1, one zero around. With matrices that act on 36 points at a time,
    A^T, G and B^T the Kronecker squares, d a tile's window, X and M a tile's values at the points:

        X = B^T d,   U = G w,   M[p] = X[p] U[p] for each point p,   y = A^T M + b
    Backward, each line transposed:
        gM = A gy,   gX[p] = gM[p] U[p]^T,   gd = B gX
        gU[p] = X[p]^T gM[p], summed over tiles,   gw = G^T gU,   gb = sum gy

    X is kept rather than x: transforming again costs more than holding 9/4 of x. U is not: backward
    wants it transposed, and transforming again costs no more than transposing.
    """

    def forward(self, x, w, b):
        a_t, g, b_t = transforms(x.dtype)
        self.shape_in = x.shape
        values = b_t @ windows(x)  # X (N*tiles, 36, Cin)
        self.save(values, w)
        y = a_t @ matmul_at_points(values, weights_at_points(g, w))  # (N*tiles, 16, Cout)
        return join(y, (*x.shape[:3], w.shape[3]), b)  # (N, H, W, Cout)

    def backward(self, gy):
        values, w = self.saved
        a_t, g, b_t = transforms(gy.dtype)
        gx = gw = gb = None
        gm = a_t.T @ cut(gy)  # gM (N*tiles, 36, Cout)
        if self.needs[0]:
            u_t = weights_at_points(g, w.swapaxes(2, 3))  # U^T at each point (36, Cout, Cin)
            gd = b_t.T @ matmul_at_points(gm, u_t)  # (N*tiles, 36, Cin)
            gx = windows_adjoint(gd, self.shape_in)
        if self.needs[1]:
            gu = values.transpose(1, 2, 0) @ gm.swapaxes(0, 1)  # (36, Cin, Cout)
            gw = (g.T @ gu.reshape(WINDOW**2, -1)).reshape(3, 3, *gu.shape[1:])
        if self.needs[2]:
            gb = column_sum(gy.reshape(-1, gy.shape[-1]))
        return gx, gw, gb
