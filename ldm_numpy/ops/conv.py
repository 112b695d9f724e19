"""Convolution: a linear map over a sliding window.

A convolution is one matrix product once every window has been copied into a row (im2col).
"""

from ..backend import array_module
from ..function import Function, raw
from .linear import Linear, column_sum
from .winograd import WinogradConv2d, winograd_pays


def pad_sides(x, padding):
    """Zeros around the two middle axes of x (N, H, W, C); `padding` (top, bottom, left, right)."""
    if not any(padding):
        return array_module(x).ascontiguousarray(x)
    top, bottom, left, right = padding
    n, h, w, c = x.shape
    padded = array_module(x).zeros((n, top + h + bottom, left + w + right, c), x.dtype)
    padded[:, top : top + h, left : left + w] = x
    return padded


def im2col(x, kernel_h: int, kernel_w: int, stride: int):
    """Every window of x (N, H, W, C) as a row: (N*Ho*Wo, KH*KW*C), ordered as the weight is.

    One copy of a strided view: in a window, the KW pixels of a row are KW*C neighbours in memory.
    """
    n, h, w, c = x.shape
    h_out, w_out = (h - kernel_h) // stride + 1, (w - kernel_w) // stride + 1
    s_n, s_h, s_w, _ = x.strides  # the last may be anything where C is 1
    shape = (n, h_out, w_out, kernel_h, kernel_w * c)
    strides = (s_n, stride * s_h, stride * s_w, s_h, x.itemsize)
    windows = array_module(x).lib.stride_tricks.as_strided(x, shape, strides)
    return windows.reshape(n * h_out * w_out, kernel_h * kernel_w * c)


def col2im(columns, shape, kernel_h: int, kernel_w: int, stride: int):
    """Adjoint of im2col: add every row (N*Ho*Wo, KH*KW*C) back into its window of `shape`."""
    n, h, w, c = shape
    h_out, w_out = (h - kernel_h) // stride + 1, (w - kernel_w) // stride + 1
    columns = columns.reshape(n, h_out, w_out, kernel_h, kernel_w, c)
    x = array_module(columns).zeros(shape, columns.dtype)
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(i, i + stride * h_out, stride)
            cols = slice(j, j + stride * w_out, stride)
            x[:, rows, cols] += columns[:, :, :, i, j]
    return x


class Conv2d(Function):
    """y[n,i,j] = sum over a,b of x[n, s i + a - top, s j + b - left] w[a,b], plus bias.

    As matrices, with X the windows of x as rows (im2col):
        Y = X W;  gW = X^T gY,  gX = gY W^T,  gx = col2im(gX).
    For stride 1, gx is itself a convolution: of gy with w turned by 180 degrees and transposed,
    which avoids the scattered additions of col2im.

    Only x is kept for backward: rebuilding its windows costs less than holding KH*KW copies.
    """

    def forward(self, x, w, b, *, stride: int, padding: tuple[int, int, int, int]):
        self.stride, self.padding = stride, padding
        self.save(x, w)
        kernel_h, kernel_w, _, c_out = w.shape
        padded = pad_sides(x, padding)
        n, h, width, _ = padded.shape
        y = im2col(padded, kernel_h, kernel_w, stride) @ w.reshape(-1, c_out)  # (N*Ho*Wo, Cout)
        if b is not None:
            y += b
        return y.reshape(n, (h - kernel_h) // stride + 1, (width - kernel_w) // stride + 1, c_out)

    def backward(self, gy):
        x, w = self.saved
        kernel_h, kernel_w, c_in, c_out = w.shape
        rows = gy.reshape(-1, c_out)  # (N*Ho*Wo, Cout)
        gx = gw = gb = None
        if self.needs[1]:
            windows = im2col(pad_sides(x, self.padding), kernel_h, kernel_w, self.stride)
            gw = (windows.T @ rows).reshape(w.shape)
        if self.needs[2]:
            gb = column_sum(rows)
        if self.needs[0]:
            top, bottom, left, right = self.padding
            last_h, last_w = kernel_h - 1, kernel_w - 1
            turned = (last_h - top, last_h - bottom, last_w - left, last_w - right)
            if self.stride == 1 and min(turned) >= 0:
                w_turned = w[::-1, ::-1].transpose(0, 1, 3, 2).reshape(-1, c_in)
                gx = im2col(pad_sides(gy, turned), kernel_h, kernel_w, 1) @ w_turned
                gx = gx.reshape(x.shape)
            else:
                n, h, width, _ = x.shape
                padded = (n, top + h + bottom, left + width + right, c_in)
                columns = rows @ w.reshape(-1, c_out).T  # (N*Ho*Wo, KH*KW*Cin)
                gx = col2im(columns, padded, kernel_h, kernel_w, self.stride)
                gx = gx[:, top : top + h, left : left + width]
        return gx, gw, gb


def conv2d(x, w, b=None, *, stride: int = 1, padding: int | tuple[int, int, int, int] = 0):
    """Convolve (in fact correlate, as the field does) an image with a kernel.

    Args:
        x: (N, H, W, Cin);  w: (KH, KW, Cin, Cout);  b: (Cout,) or None
        stride: step between windows
        padding: zeros around, one number or (top, bottom, left, right)

    Returns (N, (H + top + bottom - KH) // stride + 1, ..., Cout).
    Raises ValueError where channels do not match, the kernel has no element or is larger than the
    padded image, or stride or padding cannot be.
    """
    if isinstance(padding, int):
        padding = (padding,) * 4
    if x.ndim != 4 or x.shape[3] != w.shape[2]:
        wanted = f"(N, H, W, {w.shape[2]})"
        raise ValueError(f"conv2d: x {x.shape} must be {wanted} for a weight {w.shape}")
    if not w.size:
        raise ValueError(f"conv2d: a weight {w.shape} has no element")
    if stride < 1 or min(padding) < 0:
        raise ValueError(f"conv2d: stride {stride} must be >= 1, padding {padding} >= 0")
    height, width = x.shape[1] + sum(padding[:2]), x.shape[2] + sum(padding[2:])
    if height < w.shape[0] or width < w.shape[1]:
        raise ValueError(
            f"conv2d: the kernel {w.shape[0]}x{w.shape[1]} is larger than the padded image "
            f"{height}x{width}"
        )
    if w.shape[:2] == (1, 1) and stride == 1 and not any(padding):
        return Linear.apply(x, w[0, 0], b)  # a window of one pixel: nothing to copy
    if padding == (1, 1, 1, 1) and winograd_pays(raw(x), raw(w), stride):
        return WinogradConv2d.apply(x, w, b)
    return Conv2d.apply(x, w, b, stride=stride, padding=padding)
