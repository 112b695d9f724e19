"""A stand-in for CuPy, over NumPy, that is as strict as a GPU is, or stricter.

    with installed():
        x = cupy.asarray(numpy_array)

`cupy` here has the names that CuPy has and no others (cupy_names.json, taken from CuPy itself), its
functions have CuPy's parameters, and its arrays are no NumPy arrays: they refuse to be mixed with
NumPy's and to become one unless asked by name. What a GPU does otherwise than NumPy, it does too:

- an integer array as index wraps around where it is out of range;
- of several values assigned to one element, any may win;
- sums and products run in another order, and round otherwise;
- new memory holds anything (NaN);
- what NumPy returns as a scalar is an array without axes.

`counts` counts what costs time on a GPU: array launches, copies between host and device, and
synchronisations, where the host waits for a value.
"""

import contextlib
import importlib
import json
import sys
import types
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import scipy.special

NAMES = json.loads(Path(__file__).with_name("cupy_names.json").read_text())
# What these parameters take are arrays, not numbers or lists of numbers.
ARRAYS = {"a", "array", "arr", "ary", "b", "condition", "dst", "m", "src", "tup", "x", "x1", "x2"}
FROM_HOST = {"array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"}
CREATE = {"arange", "empty", "eye", "full", "identity", "linspace", "ones", "tri", "zeros"}
VIEWS = {"broadcast_to", "expand_dims", "moveaxis", "reshape", "squeeze", "swapaxes", "transpose"}
VIEWS |= {"atleast_1d", "atleast_2d", "broadcast_arrays", "diagonal", "flip", "ravel", "rollaxis"}
VIEWS |= {"as_strided", "astype", "view"}  # astype launches where it copies: see there
SUMS = {"sum", "mean", "prod", "var", "std", "nansum", "nanmean", "norm"}
SCANS = {"cumsum", "cumprod", "nancumsum", "nancumprod"}
# How long the result is depends on the values: the host waits for it.
WAITS = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "intersect1d"}
WAITS |= {"nonzero", "setdiff1d", "setxor1d", "trim_zeros", "union1d", "unique", "unique_all"}
WAITS |= {"unique_counts", "unique_inverse", "unique_values"}
# What these parameters take is known on the host: for a value on the device it waits.
ON_HOST = {"shape", "newshape", "axis", "axes", "axis1", "axis2", "source", "destination", "shift"}
ON_HOST |= {"reps", "repeats", "N", "M", "k", "num", "pad_width", "indices_or_sections", "ddof"}
ON_HOST |= {"decimals", "offset", "sections", "minlength", "size", "n"}
COPIES = {"tobytes", "tofile", "dump", "dumps"}
REDUCES = {"add", "multiply"}  # of the ufuncs with `.reduce`
SCATTERS = {"add", "subtract", "maximum", "minimum"}  # of those with `.at`
SCATTERS |= {"bitwise_and", "bitwise_or", "bitwise_xor"}
ALLOWED = {  # of functions that take any keyword
    "einsum": {"dtype", "casting", "optimize"},
    "pad": {"constant_values", "end_values", "reflect_type", "stat_length"},
}
QUIET = np.errstate(all="ignore")  # a GPU computes inf and NaN without a word
UFUNC = {"out", "dtype", "casting"}  # no `where`

counts: Counter = Counter()
_shuffle = np.random.default_rng(0)


def unsupported(value) -> TypeError:
    return TypeError(f"Unsupported type {type(value)}")


class Flags:
    """What CuPy tells of an array's layout."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = flags.owndata

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """An array on the pretended device. `_host`, the NumPy array behind it, is for this file."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, host: np.ndarray):
        if host.dtype.kind not in "biufc" or host.dtype.char in "gG":  # objects, texts, long double
            raise ValueError(f"Unsupported dtype {host.dtype}")
        self._host = host

    # What is known without waiting ----------------------------------------------------------

    @property
    def shape(self):
        return self._host.shape

    @shape.setter
    def shape(self, shape):
        self._host.shape = shape

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags))
    T = property(lambda self: ndarray(self._host.T))
    mT = property(lambda self: ndarray(self._host.mT))
    real = property(lambda self: ndarray(self._host.real))
    imag = property(lambda self: ndarray(self._host.imag))

    @property
    def base(self):
        return None if self._host.base is None else ndarray(self._host.base)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        synchronise("repr")
        return repr(self._host).replace("array", "cupy", 1)

    # To the host ----------------------------------------------------------------------------

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def get(self, stream=None, order="C", out=None, blocking=True):
        synchronise("get")
        counts["to host"] += 1
        return np.array(self._host, order=order)

    def set(self, arr, stream=None):
        if not isinstance(arr, np.ndarray):
            raise unsupported(arr)
        counts["to device"] += 1
        self._host[...] = arr

    def item(self):
        synchronise("item")
        return self._host.item()

    def tolist(self):
        synchronise("tolist")
        return self._host.tolist()

    def __bool__(self):
        synchronise("bool")
        return bool(self._host)

    def __float__(self):
        synchronise("float")
        return float(self._host)

    def __int__(self):
        synchronise("int")
        return int(self._host)

    def __index__(self):
        synchronise("index")
        return self._host.__index__()

    def __format__(self, spec):
        synchronise("format")
        return format(self._host[()], spec)

    # Elements -------------------------------------------------------------------------------

    def __getitem__(self, index):
        index, advanced = indices(index, self.shape)
        if advanced:
            launch("getitem")
        return ndarray(np.asarray(self._host[index]))

    def __setitem__(self, index, value):
        launch("setitem")
        if isinstance(value, np.ndarray):
            raise unsupported(value)
        value = value._host if isinstance(value, ndarray) else value
        index, advanced = indices(index, self.shape)
        if not advanced:
            self._host[index] = value
            return
        places = np.arange(self.size).reshape(self.shape)[index]
        values = np.broadcast_to(np.asarray(value, self.dtype), places.shape).ravel()
        order = _shuffle.permutation(places.size)
        places, values = places.ravel()[order], values[order]
        self._host[np.unravel_index(places, self.shape)] = values

    # Arithmetic -----------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__":
            raise TypeError(f"ufunc method {method} is not supported by CuPy through NumPy")
        options["out"] = options.get("out", (None,))[0]
        return getattr(cupy, ufunc.__name__)(*inputs, **options)

    def __array_function__(self, function, types, args, options):
        owner = cupy.linalg if function.__module__ == "numpy.linalg" else cupy
        return getattr(owner, function.__name__)(*args, **options)


def synchronise(what: str) -> None:
    counts["synchronisations"] += 1
    counts[f"synchronisation by {what}"] += 1


def launch(name: str) -> None:
    counts["launches"] += 1
    counts[f"launch of {name}"] += 1


def indices(index, shape):
    """The index for NumPy, integers out of range wrapped, and whether arrays are in it."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(listed(part) if isinstance(part, list) else part for part in parts)
    used = sum(
        1 if not isinstance(part, ndarray) or part.dtype != bool else part.ndim
        for part in parts
        if part is not None and part is not Ellipsis
    )
    axis, result, advanced = 0, [], False
    for part in parts:
        if isinstance(part, np.ndarray):
            raise TypeError("a NumPy array is no index of a device array: it would be copied")
        if part is Ellipsis:
            axis += len(shape) - used
        elif isinstance(part, ndarray):
            advanced = True
            host = part._host
            if host.dtype == bool:
                synchronise("mask")  # how many are True decides the shape
                axis += host.ndim
            else:
                host = host % shape[axis] if shape[axis] else host
                axis += 1
            part = host
        elif part is not None:
            axis += 1
        result.append(part)
    return tuple(result), advanced


def listed(part: list) -> ndarray:
    """A list as index, which is copied to the device at every use."""
    counts["to device"] += 1
    return ndarray(np.array(part) if part else np.array(part, int))


def to_numpy(value):
    """Device arrays as NumPy arrays, alone or in a list, tuple or dict; NumPy's are refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise unsupported(value)
    if isinstance(value, list | tuple):
        return type(value)(to_numpy(item) for item in value)
    if isinstance(value, dict):
        return {key: to_numpy(item) for key, item in value.items()}
    return value


def from_numpy(value):
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    if isinstance(value, list | tuple):
        found = [from_numpy(item) for item in value]
        return type(value)(found) if type(value) in (list, tuple) else tuple(found)
    return value


def bind(name: str, parameters: list[str], args, options) -> dict:
    """Arguments by parameter, as far as they have one. TypeError for one that CuPy lacks."""
    if "..." in parameters:
        positional = parameters[: parameters.index("...")]
    else:
        positional = parameters[: parameters.index("*")] if "*" in parameters else parameters
        positional = [p for p in positional if p != "**"]
        if len(args) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} positional arguments: {parameters}")
    known = set(parameters) - {"*", "...", "**"} | ALLOWED.get(name, set())
    for key in options:
        if key not in known:
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}")
    return dict(zip(positional, args)) | options


def check_arrays(name: str, bound: dict) -> None:
    """Only ufuncs take numbers where an array belongs."""
    for key, value in bound.items():
        if key not in ARRAYS or (name == "where" and key == "x"):
            continue
        for item in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(item, ndarray):
                raise TypeError(f"{name}(): {key} must be a cupy.ndarray, not {type(item)}")


def function(name: str, parameters, host):
    """CuPy's function of that name, computed by NumPy's."""

    @QUIET
    def call(*args, **options):
        bound = bind(name, parameters, args, options)
        if name in FROM_HOST:
            counts["to device"] += isinstance(args[0], np.ndarray)
            args = [a._host if isinstance(a, ndarray) else a for a in args]
            return ndarray(host(*args, **options))
        if name not in CREATE:
            check_arrays(name, bound)
        if name not in VIEWS:
            launch(name)
        if name in WAITS or (name == "where" and len(bound) == 1):
            synchronise(name)
        await_parameters(name, bound)
        args, host_options = to_numpy(args), to_numpy(options)
        if name in SUMS:
            args = backwards(args[0], bound.get("axis")), *args[1:]
        elif name == "einsum":
            args = flip_contracted(*args)
        elif name in ("matmul", "dot"):
            args = flip_inner(*args)
        elif name == "vdot":
            args = args[0].ravel()[::-1], args[1].ravel()[::-1]
        elif name == "take_along_axis":
            args, host_options = wrapped(**to_numpy(bound)), {}
        compute = partial(scan, host) if name in SCANS else host
        compute = partial(host, mode="wrap") if name == "take" else compute
        result = compute(*args, **host_options)
        if name in VIEWS:
            copied(name, bound.get("a"), result)
        if name in ("allclose", "array_equal", "array_equiv"):
            result = np.asarray(result)  # no Python bool, for which the host would wait
        if name in ("empty", "empty_like") and result.dtype.kind == "f":
            result.fill(np.nan)
        return options["out"] if options.get("out") is not None else from_numpy(result)

    call.__name__ = name
    return call


def await_parameters(name: str, bound: dict, others=()) -> None:
    """Count a wait for each parameter that is on the device and that the host must know."""
    host = ON_HOST | ({"start", "stop", "step"} if name == "arange" else set())
    values = [value for key, value in bound.items() if key in host] + list(others)
    for value in values:
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, ndarray) for item in items):
            synchronise(f"a parameter of {name}")


def wrapped(a, indices, axis=-1):
    """take_along_axis's arguments, indices that are out of range wrapped."""
    return a, indices % (a.size if axis is None else a.shape[axis]), axis


def copied(name: str, source, result) -> None:
    """Count a launch where what is a view for most arrays had to be a copy for this one."""
    known = isinstance(source, ndarray) and isinstance(result, np.ndarray)
    if known and result.size and not np.shares_memory(result, source._host):
        launch(name)


def scan(host, a, axis=None, dtype=None, out=None):
    """A running sum or product as two of half the length, as the blocks of a GPU make them."""
    if axis is None:
        a, axis = a.ravel(), 0
    half = a.shape[axis] // 2
    first, second = (host(part, axis, dtype) for part in np.split(a, [half], axis))
    if half:
        last = np.take(first, [-1], axis)
        second = second * last if "prod" in host.__name__ else second + last
    result = np.concatenate([first, second], axis)
    if out is not None:
        out[...] = result
    return result


def backwards(a, axis):
    """The elements in reverse order along the axes that a reduction sums over."""
    axes = range(a.ndim) if axis is None else np.atleast_1d(axis) % max(a.ndim, 1)
    return a[tuple(slice(None, None, -1 if i in axes else 1) for i in range(a.ndim))]


def flip_contracted(subscripts, *operands):
    """einsum's operands with every summed axis reversed."""
    inputs, _, output = subscripts.replace(" ", "").partition("->")
    flipped = []
    for labels, operand in zip(inputs.split(","), operands):
        before, dots, after = labels.partition("...")
        rest = [slice(None)] * (operand.ndim - len(before) - len(after)) if dots else []
        step = {label: slice(None, None, -1 if label not in output else 1) for label in labels}
        index = [step[k] for k in before] + rest + [step[k] for k in after]
        flipped.append(operand[tuple(index)])
    return subscripts, *flipped


def flip_inner(a, b, *out):
    """The operands of a product with the axis reversed that it sums over."""
    return a[..., ::-1], (b[::-1] if b.ndim == 1 else b[..., ::-1, :]), *out


class Ufunc:
    """An elementwise function, with CuPy's few options and methods."""

    def __init__(self, name: str, host):
        self.__name__, self._host = name, host

    @QUIET
    def __call__(self, *args, **options):
        for key in options:
            if key not in UFUNC:
                raise TypeError(f"Wrong arguments {{{key!r}}}: {self.__name__} has {sorted(UFUNC)}")
        launch(self.__name__)
        out = options.pop("out", None)
        if out is not None and not isinstance(out, ndarray):
            raise TypeError("Output arguments type must be cupy.ndarray")
        for value in args:
            if not isinstance(value, ndarray | np.generic | int | float | complex):
                raise unsupported(value)
        args = [value._host if isinstance(value, ndarray) else value for value in args]
        if out is not None:
            options["out"] = out._host
        result = self._host(*args, **options)
        return from_numpy(result) if out is None else out

    def at(self, a, index, *b):
        """Unbuffered, in any order."""
        if self.__name__ not in SCATTERS:
            raise NotImplementedError(f"`cupy_{self.__name__}.at` is not supported yet")
        launch(f"{self.__name__}.at")
        if not isinstance(a, ndarray):
            raise unsupported(a)
        index, _ = indices(index, a.shape)
        places = np.arange(a.size).reshape(a.shape)[index]
        order = _shuffle.permutation(places.size)
        values = [np.broadcast_to(to_numpy(value), places.shape).ravel()[order] for value in b]
        places = np.unravel_index(places.ravel()[order], a.shape)
        self._host.at(a._host, places, *values)

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        if self.__name__ not in REDUCES:
            raise NotImplementedError(f"`cupy_{self.__name__}.reduce` is not supported yet")
        launch(f"{self.__name__}.reduce")
        host = to_numpy(array)
        return from_numpy(self._host.reduce(host, axis, dtype, out, keepdims))


class Module(types.ModuleType):
    """A module of the stand-in: what is not in the snapshot does not exist."""

    def __init__(self, name: str, host):
        super().__init__(name)
        self._entries, self._module = NAMES["modules"][name], host

    def __getattr__(self, name):
        kind = self._entries.get(name)
        if kind is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if kind == "module":
            made = Module(f"{self.__name__}.{name}", getattr(self._module, name))
        elif name == "ndarray":
            made = ndarray
        else:
            host = getattr(self._module, name, None)
            if host is None:
                raise NotImplementedError(f"the stand-in has no {self.__name__}.{name} yet")
            made = function(name, kind, host) if isinstance(kind, list) else host
            made = Ufunc(name, host) if kind == "ufunc" else made
        setattr(self, name, made)
        return made


class Generator:
    """cupy.random.Generator: NumPy's, without permutation, choice, normal and others."""

    def __init__(self, seed=None):
        self._host = np.random.default_rng(seed)

    def __getattr__(self, name):
        if name not in NAMES["Generator"]:
            raise AttributeError(f"'Generator' object has no attribute {name!r}")
        host = getattr(self._host, name)
        return lambda *args, **options: from_numpy(host(*args, **options))


def method(name: str, parameters):
    """ndarray's method of that name, by NumPy's."""

    @QUIET
    def call(self, *args, **options):
        bound = bind(name, parameters[1:], args, options)
        if name == "astype":
            dtype = np.dtype(args[0] if args else options["dtype"])
            launch("astype") if options.get("copy", True) or dtype != self.dtype else None
        elif name not in VIEWS:
            launch(name)
        if name in WAITS | COPIES:
            synchronise(name)
        if name in COPIES:
            counts["to host"] += 1
        await_parameters(name, bound, args if "..." in parameters else ())
        host = backwards(self._host, bound.get("axis")) if name in SUMS else self._host
        args, host_options = to_numpy(args), to_numpy(options)
        compute = partial(scan, getattr(np, name), host) if name in SCANS else getattr(host, name)
        compute = partial(compute, mode="wrap") if name == "take" else compute
        result = compute(*args, **host_options)
        if name in VIEWS and name != "astype":
            copied(name, self, result)
        return options["out"] if options.get("out") is not None else from_numpy(result)

    call.__name__ = name
    return call


def operator(name: str, ufunc: str, reflected: bool, in_place: bool):
    def call(self, other):
        if getattr(other, "__array_priority__", 0) > self.__array_priority__ or other is None:
            return NotImplemented
        function = getattr(cupy, ufunc)
        if in_place:
            return function(self, other, out=self)
        return function(other, self) if reflected else function(self, other)

    call.__name__ = name
    return call


BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
COMPARE = {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}
UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def complete() -> None:
    """Give ndarray the methods and operators of the snapshot that are not written out above."""
    for short, ufunc in (BINARY | COMPARE).items():
        for prefix in ("", "r", "i"):
            name = f"__{prefix}{short}__"
            if name in NAMES["operators"]:
                setattr(ndarray, name, operator(name, ufunc, prefix == "r", prefix == "i"))
    for short, ufunc in UNARY.items():
        setattr(ndarray, f"__{short}__", lambda self, u=ufunc: getattr(cupy, u)(self))
    for name, parameters in NAMES["ndarray"].items():
        known = hasattr(np.ndarray, name) and not hasattr(ndarray, name)
        if known and isinstance(parameters, list):
            setattr(ndarray, name, method(name, parameters))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return a.get(order=order) if isinstance(a, ndarray) else np.asarray(a, order=order)


cupy = Module("cupy", np)
cupy.asnumpy = asnumpy
cupy.get_array_module = lambda *args: cupy if any(isinstance(a, ndarray) for a in args) else np
cupy.random = Module("cupy.random", np.random)
cupy.random.default_rng = cupy.random.Generator = Generator
special = Module("cupyx.scipy.special", scipy.special)
complete()


@contextlib.contextmanager
def installed():
    """The stand-in in the place of CuPy, and the counts from zero, inside the block."""
    backend = importlib.import_module("ldm_numpy.backend")
    names = {
        "cupy": cupy,
        "cupyx": types.ModuleType("cupyx"),
        "cupyx.scipy": types.ModuleType("cupyx.scipy"),
        "cupyx.scipy.special": special,
    }
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    backend._cupy.cache_clear()
    counts.clear()
    try:
        yield counts
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        backend._cupy.cache_clear()
