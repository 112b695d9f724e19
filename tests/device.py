"""pytest --backend strict, or gpu: the same tests with the library's arrays on a device.

A test speaks NumPy. Where it calls array code of the library (the modules below), its arrays are
carried to the device, and what comes back is carried to the host; networks that it builds live on
the device; a `device` that it leaves open is the GPU. Inside the library nothing is carried: there,
a NumPy array among device arrays is an error as it is on a GPU.
"""

import functools
import importlib
import inspect
import pkgutil
import sys

import numpy as np

import ldm_numpy

ARRAY_CODE = ("diffusion", "function", "gradcheck", "models", "nn", "ops", "optim", "parallel")
ARRAY_CODE += ("primitives", "tensor")
WITH_DEVICE = ("editing", "evaluation", "model_folder", "pipeline", "training")
HOST = {"from_torch_layout", "load_state_dict", "state_dict", "to_torch_layout"}  # by contract
KEPT = {"__init_subclass__", "__getattribute__", "__setattr__", "__class_getitem__"}


def by_a_test(depth: int = 2) -> bool:
    """Whether the caller's caller is code of a test."""
    name = sys._getframe(depth).f_globals.get("__name__", "")
    return name.startswith(("tests.test_", "tests.tiny", "tests.reference"))


class Border:
    """Carries arrays between the tests and the library. cupy: CuPy, or the stand-in for it."""

    def __init__(self, cupy):
        self.cupy, self.array = cupy, cupy.ndarray

    def close(self) -> None:
        """Wrap the library."""
        from ldm_numpy.function import Function

        for module in modules(ARRAY_CODE):
            self.wrap(module, self.carried)
            for value in vars(module).values():
                own = isinstance(value, type) and value.__module__ == module.__name__
                if own and not issubclass(value, Function):  # tests subclass it: device code
                    self.watch(value)
        for module in modules(WITH_DEVICE):
            self.wrap(module, self.placed)

    def to_device(self, value):
        """Integers stay: ids of tokens and classes are given, and checked, on the host."""
        if isinstance(value, np.ndarray):
            return value if value.dtype.kind in "iu" else self.cupy.asarray(value)
        return self.each(self.to_device, self.callback(value))

    def callback(self, function):
        """A test's function, for the library to call: its side of the border is the host."""
        collects = inspect.isbuiltin(function) and isinstance(function.__self__, list | dict)
        mine = inspect.isfunction(function) and function.__module__.startswith("tests.")
        if not (collects or mine):
            return function

        @functools.wraps(function)
        def call(*args, **options):
            result = function(*self.to_host(list(args)), **self.to_host(options))
            return self.to_device(result)

        return call

    def index(self, value):
        """An index, of integers too."""
        if isinstance(value, np.ndarray):
            return self.cupy.asarray(value)
        return self.each(self.index, value)

    def to_host(self, value):
        if isinstance(value, self.array):
            return value._host
        return self.each(self.to_host, value)

    def each(self, function, value):
        """`function` of what is in a list, a tuple or a dictionary."""
        kind = type(value)
        if kind in (list, tuple):
            return kind([function(item) for item in value])
        if kind is dict:
            return {key: function(item) for key, item in value.items()}
        return value

    def holds(self, value) -> bool:
        """Whether there is a device array in `value`."""
        if type(value) in (list, tuple):
            return any(self.holds(item) for item in value)
        return isinstance(value, self.array)

    def wrap(self, module, how) -> None:
        """Every function and method that a module defines, by `how`."""
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value) and name not in HOST:
                setattr(module, name, how(value))
                for other in list(sys.modules.values()):  # the package's __init__ has it, too
                    if getattr(other, "__name__", "").startswith("ldm_numpy") and (
                        getattr(other, "__path__", None) and vars(other).get(name) is value
                    ):
                        setattr(other, name, getattr(module, name))
            elif isinstance(value, type):
                for key, inner in list(vars(value).items()):
                    if key in KEPT | HOST:
                        continue
                    if inspect.isfunction(inner):
                        setattr(value, key, how(inner))
                    elif isinstance(inner, classmethod | staticmethod):
                        setattr(value, key, type(inner)(how(inner.__func__)))

    def carried(self, function):
        """`function` that takes a test's arrays to the device and brings it NumPy arrays."""
        from ldm_numpy.nn import Module
        from ldm_numpy.tensor import Tensor

        @functools.wraps(function)
        def call(*args, **options):
            if not by_a_test():
                return function(*args, **options)
            if function.__name__ == "__init__" and not isinstance(args[0], Tensor):
                function(*map(self.callback, args), **options)
                if isinstance(args[0], Module):
                    args[0].to("gpu")
                return None
            inside = self.holds(list(args)) or self.holds(list(options.values()))
            if function.__name__ == "__getitem__":
                args = args[0], self.index(args[1])
            result = function(*self.to_device(list(args)), **self.to_device(options))
            if function.__name__ == "__init__" and isinstance(args[0].data, np.ndarray):
                args[0].data = self.to_device(args[0].data)  # made inside, as a Parameter's
            if inspect.isfunction(result) and result.__module__.startswith("ldm_numpy."):
                return self.carried(result)
            return result if inside else self.to_host(result)

        return call

    def placed(self, function):
        """`function`, which takes a device and host arrays: a test's device is the GPU."""
        parameters = inspect.signature(function).parameters
        place = list(parameters).index("device") if "device" in parameters else None

        @functools.wraps(function)
        def call(*args, **options):
            if not by_a_test():
                return function(*args, **options)
            if place is not None and len(args) <= place:
                options.setdefault("device", "gpu")
            return self.to_host(function(*args, **options))

        return call

    def watch(self, kind: type) -> None:
        """Attributes that a test reads are NumPy arrays, those that it sets device arrays."""
        get, put = kind.__getattribute__, kind.__setattr__

        def getter(instance, name):
            value = get(instance, name)
            if (isinstance(value, self.array) or type(value) in (list, tuple)) and by_a_test():
                return self.to_host(value)
            return value

        def setter(instance, name, value):
            if isinstance(value, np.ndarray) and by_a_test():
                value = self.to_device(value)
            put(instance, name, value)

        if get is object.__getattribute__:
            kind.__getattribute__ = getter
        if put is object.__setattr__:
            kind.__setattr__ = setter


def modules(names) -> list:
    """The library's modules of these names, and those inside them."""
    found = []
    for _, name, _ in pkgutil.walk_packages(ldm_numpy.__path__, "ldm_numpy."):
        if name.split(".")[1] in names:
            found.append(importlib.import_module(name))
    return found
