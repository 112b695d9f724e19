"""Change the resolution of an image without weights. Images are (N, H, W, C)."""

from ..backend import array_module
from ..function import Function


def blocks(x, size: int):
    """(N, H, W, C) -> (N, H/size, size, W/size, size, C), a view."""
    n, h, w, c = x.shape
    return x.reshape(n, h // size, size, w // size, size, c)


class UpsampleNearest(Function):
    """Every pixel becomes a block of factor x factor equal ones;  gx = sum of gy over the block."""

    def forward(self, x, *, factor: int):
        self.factor = factor
        n, h, w, c = x.shape
        xp = array_module(x)
        y = xp.broadcast_to(x[:, :, None, :, None], (n, h, factor, w, factor, c))
        return y.reshape(n, h * factor, w * factor, c)

    def backward(self, gy):
        return (blocks(gy, self.factor).sum((2, 4)),)


class AveragePool(Function):
    """Every block of size x size pixels becomes its mean;  gx = gy / size^2, spread again."""

    def forward(self, x, *, size: int):
        self.size = size
        return blocks(x, size).mean((2, 4))

    def backward(self, gy):
        n, h, w, c = gy.shape
        gy = (gy / self.size**2)[:, :, None, :, None]
        gx = array_module(gy).broadcast_to(gy, (n, h, self.size, w, self.size, c))
        return (gx.reshape(n, h * self.size, w * self.size, c),)


def to_depth(x, block: int):
    """(N, H, W, C) -> (N, H/b, W/b, b*b*C): a block's pixels become channels. Arrays."""
    n, h, w, c = x.shape
    y = blocks(x, block).transpose(0, 1, 3, 2, 4, 5)  # (N, H/b, W/b, b, b, C)
    return y.reshape(n, h // block, w // block, block * block * c)


def to_space(x, block: int):
    """(N, H, W, b*b*C) -> (N, H*b, W*b, C): the inverse of to_depth. Arrays."""
    n, h, w, depth = x.shape
    c = depth // block**2
    y = x.reshape(n, h, w, block, block, c).transpose(0, 1, 3, 2, 4, 5)  # (N, H, b, W, b, C)
    return y.reshape(n, h * block, w * block, c)


class SpaceToDepth(Function):
    """y = to_depth(x), a permutation;  gx = to_space(gy)."""

    def forward(self, x, *, block: int):
        self.block = block
        return to_depth(x, block)

    def backward(self, gy):
        return (to_space(gy, self.block),)


class DepthToSpace(Function):
    """y = to_space(x), a permutation;  gx = to_depth(gy)."""

    def forward(self, x, *, block: int):
        self.block = block
        return to_space(x, block)

    def backward(self, gy):
        return (to_depth(gy, self.block),)


def upsample_nearest(x, factor: int = 2):
    """(N, H, W, C) -> (N, factor H, factor W, C) by repeating pixels. ValueError if factor < 1."""
    _check_positive("upsample_nearest", factor)
    return UpsampleNearest.apply(x, factor=factor)


def average_pool(x, size: int):
    """(N, H, W, C) -> (N, H/size, W/size, C), means of blocks. ValueError unless size divides."""
    _check_divides("average_pool", x.shape, size)
    return AveragePool.apply(x, size=size)


def space_to_depth(x, block: int):
    """(N, H, W, C) -> (N, H/b, W/b, b*b*C). ValueError unless `block` divides H and W."""
    _check_divides("space_to_depth", x.shape, block)
    return SpaceToDepth.apply(x, block=block)


def depth_to_space(x, block: int):
    """(N, H, W, b*b*C) -> (N, H*b, W*b, C). ValueError unless b*b divides the channels."""
    _check_positive("depth_to_space", block)
    if x.shape[3] % block**2:
        raise ValueError(f"depth_to_space: {block**2} does not divide {x.shape[3]} channels")
    return DepthToSpace.apply(x, block=block)


def _check_positive(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name}: {size} must be 1 or more")


def _check_divides(name: str, shape, size: int) -> None:
    _check_positive(name, size)
    if shape[1] % size or shape[2] % size:
        raise ValueError(f"{name}: {size} does not divide the image {shape[1]}x{shape[2]}")
