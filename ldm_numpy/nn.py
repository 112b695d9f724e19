"""Modules: what owns parameters, and the layers that own nothing else.

A Module is an object whose attributes are Parameters and other Modules. The path of attributes that
leads to a parameter is its name, and attributes are called so that the names are those of diffusers
and transformers: `down_blocks.0.resnets.0.norm1.weight`.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from . import ops
from .backend import array_module, generator, to_device, to_host
from .tensor import Tensor

Init = str | Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(std: float) -> Init:
    """Initialisation from N(0, std^2)."""
    return lambda rng, shape: std * rng.standard_normal(shape, np.float32)


def fan_in_uniform(fan_in: int) -> Init:
    """Initialisation from U(-b, b), b = 1 / sqrt(fan_in): PyTorch's for linear layers and
    convolutions, so that a network built here starts as theirs do."""
    bound = 1 / math.sqrt(fan_in)
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


class Parameter(Tensor):
    """A tensor to be learned.

    Args:
        shape: its shape, in our layout
        init: "zeros", "ones", or a function (rng, shape) -> array, used by `initialise`
        torch_axes: the permutation that turns our layout into PyTorch's, None where they agree

    The storage is zeros, float32, until `initialise` or `load_state_dict` fills it. The system
    hands out pages of zeros only when they are touched, so even Stable Diffusion is built for free.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        init: Init = "zeros",
        torch_axes: tuple[int, ...] | None = None,
    ):
        super().__init__(np.zeros(shape, np.float32), requires_grad=True)
        self.init = init
        self.torch_axes = torch_axes

    def initialise(self, rng: np.random.Generator) -> None:
        """Fill the storage in place, with numbers drawn on the host."""
        if callable(self.init):
            xp = array_module(self.data)
            self.data[...] = xp.asarray(self.init(rng, self.shape), dtype=self.dtype)
        else:
            self.data[...] = {"zeros": 0, "ones": 1}[self.init]


class Module:
    """Base class of layers and networks. A subclass sets attributes and defines `forward`."""

    training = True

    def forward(self, *inputs, **options):
        raise NotImplementedError

    def __call__(self, *inputs, **options):
        return self.forward(*inputs, **options)

    # Contents ------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules directly inside, in order of definition."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """All parameters with their attribute paths, in order of definition."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def count_parameters(self) -> int:
        """How many numbers there are to learn."""
        return sum(parameter.size for parameter in self.parameters())

    # State ---------------------------------------------------------------------------------

    def initialise(self, seed: int) -> None:
        """Draw every parameter afresh. Each has a generator of its own, keyed by its name, so its
        values do not depend on what other parameters there are."""
        for name, parameter in self.named_parameters():
            parameter.initialise(generator(seed, "init", name))

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter, on the host."""
        return {name: np.array(to_host(p.data)) for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Copy `state` into the storage the parameters have.

        Raises ValueError, and changes nothing, unless names and shapes agree exactly.
        """
        parameters = dict(self.named_parameters())
        misshapen = [
            f"{name} {tuple(state[name].shape)} instead of {parameter.shape}"
            for name, parameter in parameters.items()
            if name in state and tuple(state[name].shape) != parameter.shape
        ]
        problems = {
            "missing": [name for name in parameters if name not in state],
            "unexpected": [name for name in state if name not in parameters],
            "misshapen": misshapen,
        }
        if any(problems.values()):
            listed = "; ".join(f"{kind}: {_shorten(n)}" for kind, n in problems.items() if n)
            raise ValueError(f"weights do not fit {type(self).__name__}: {listed}")
        for name, parameter in parameters.items():
            array = array_module(parameter.data).asarray(state[name], dtype=parameter.dtype)
            parameter.data[...] = array

    def train(self, training: bool = True) -> "Module":
        """Set `training` here and in every module inside."""
        self.training = training
        for _, child in self.named_children():
            child.train(training)
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def to(self, device: str) -> "Module":
        """Move the storage to "cpu" or "gpu". Do it before an optimizer takes the parameters."""
        for parameter in self.parameters():
            parameter.data = to_device(parameter.data, device)
        return self

    def astype(self, dtype) -> "Module":
        """Change the precision of the storage; float64 is for gradient checks."""
        for parameter in self.parameters():
            parameter.data = parameter.data.astype(dtype)
        return self


def _shorten(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class ModuleList(Module):
    """Modules named by their place, "0", "1", ...; None leaves a place empty."""

    def __init__(self, modules: Iterable[Module | None]):
        for i, module in enumerate(modules):
            if module is not None:
                setattr(self, str(i), module)

    def __getitem__(self, i: int) -> Module:
        return getattr(self, str(i))

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Linear(Module):
    """y = x W + b.  x (..., Din) -> (..., Dout).

    `init` sets the initialisation of the weight and a bias of zeros; without it, both are drawn
    from `fan_in_uniform`.
    """

    def __init__(self, din: int, dout: int, bias: bool = True, init: Init | None = None):
        default = fan_in_uniform(din)
        self.weight = Parameter((din, dout), init or default, torch_axes=(1, 0))
        self.bias = Parameter((dout,), "zeros" if init else default) if bias else None

    def forward(self, x) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Conv2d(Module):
    """Convolution.  x (N, H, W, Cin) -> (N, H', W', Cout).

    `padding` is a number or (top, bottom, left, right); `init` as in Linear.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | tuple[int, int, int, int] = 0,
        bias: bool = True,
        init: Init | None = None,
    ):
        default = fan_in_uniform(cin * kernel_size**2)
        shape = (kernel_size, kernel_size, cin, cout)
        self.weight = Parameter(shape, init or default, torch_axes=(3, 2, 0, 1))
        self.bias = Parameter((cout,), "zeros" if init else default) if bias else None
        self.stride = stride
        self.padding = padding

    def forward(self, x) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


class GroupNorm(Module):
    """Normalisation over space and groups of channels, then SiLU if asked.  x (N, ..., C)."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, silu: bool = False):
        if channels % groups:
            raise ValueError(f"GroupNorm: {channels} channels cannot form {groups} equal groups")
        self.weight = Parameter((channels,), "ones")
        self.bias = Parameter((channels,))
        self.groups = groups
        self.eps = eps
        self.silu = silu

    def forward(self, x) -> Tensor:
        return ops.group_norm(
            x, self.weight, self.bias, groups=self.groups, eps=self.eps, silu=self.silu
        )


class LayerNorm(Module):
    """Normalisation over the last axis.  x (..., D)."""

    def __init__(self, dim: int, eps: float = 1e-5):
        self.weight = Parameter((dim,), "ones")
        self.bias = Parameter((dim,))
        self.eps = eps

    def forward(self, x) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class Embedding(Module):
    """A table of vectors.  ids (...) integers -> (..., D)."""

    def __init__(self, n: int, dim: int, init: Init | None = None):
        self.weight = Parameter((n, dim), init or normal(1.0))

    def forward(self, ids) -> Tensor:
        return ops.embedding(self.weight, ids)


# Weights from PyTorch ----------------------------------------------------------------------

# Spellings of other versions, and ours. Tried only on names that are unknown as they stand.
ALIASES = (
    ("text_model.", ""),  # every published checkpoint; transformers 5 dropped it
    (".query.", ".to_q."),  # the autoencoder's attention in early diffusers
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)
IGNORED = "position_ids"  # 0, 1, 2, ...: a constant that old transformers stored as a weight


def to_torch_layout(module: Module, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of `module`, with every array's axes in PyTorch's order.

    Which axes move is known from the layer that owns the weight. The shape cannot tell: a
    square matrix must be transposed too.
    """
    axes = {name: parameter.torch_axes for name, parameter in module.named_parameters()}
    return {
        name: np.ascontiguousarray(array.transpose(axes[name])) if axes[name] else array
        for name, array in state.items()
    }


def from_torch_layout(module: Module, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_torch_layout`, which also understands older names (ALIASES).

    Names that remain unknown and shapes that cannot be right are passed on as they are:
    `load_state_dict` lists them.
    """
    parameters = dict(module.named_parameters())
    converted = {}
    for name, array in state.items():
        if name.endswith(IGNORED):
            continue
        name = _our_name(name, parameters)
        axes = parameters[name].torch_axes if name in parameters else None
        if axes is not None and array.ndim == len(axes):
            array = np.ascontiguousarray(array.transpose(np.argsort(axes)))
        converted[name] = array
    return converted


def _our_name(name: str, known: dict[str, Parameter]) -> str:
    for theirs, ours in ALIASES:
        renamed = name.replace(theirs, ours)
        if name not in known and renamed in known:
            return renamed
    return name
