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
from itertools import zip_longest

import numpy as np

import ldm_numpy

ARRAY_CODE = ("diffusion", "function", "gradcheck", "models", "nn", "ops", "optim", "parallel")
ARRAY_CODE += ("primitives", "tensor")
WITH_DEVICE = ("attention_maps", "editing", "evaluation", "model_folder", "pipeline", "training")
HOST = {"from_torch_layout", "load_state_dict", "state_dict", "to_torch_layout"}  # by contract
ON_DEVICE = {"a", "b", "cond", "decoded", "latents", "x"}  # parameters of WITH_DEVICE
KEPT = {"__init_subclass__", "__getattribute__", "__setattr__", "__class_getitem__"}


def by_a_test(depth: int = 2) -> bool:
    """Whether the caller's caller is code of a test."""
    name = sys._getframe(depth).f_globals.get("__name__", "")
    return name.startswith(("tests.test_", "tests.tiny", "tests.reference", "_pytest.monkeypatch"))


class Carried(np.ndarray):
    """A device array on the host; what a test writes into it is written on the device, too."""

    origin = None

    def __setitem__(self, index, value):
        super().__setitem__(index, value)
        self.carry()

    def fill(self, value):
        super().fill(value)
        self.carry()

    def carry(self) -> None:
        if self.origin is not None:
            self.origin.set(np.array(self))


class Border:
    """Carries arrays between the tests and the library. cupy: CuPy, or the stand-in for it."""

    def __init__(self, cupy):
        self.cupy, self.array = cupy, cupy.ndarray

    def close(self) -> None:
        """Wrap the library."""
        from ldm_numpy.function import Function

        for names, how in ((ARRAY_CODE, self.carried), (WITH_DEVICE, self.placed)):
            for module in modules(names):
                self.wrap(module, how)
                for value in vars(module).values():
                    own = isinstance(value, type) and value.__module__ == module.__name__
                    if own and not issubclass(value, Function):  # tests subclass it: device code
                        self.watch(value)

    def to_device(self, value):
        """Integers stay: ids of tokens and classes are given, and checked, on the host. So do texts
        and objects, which a device cannot hold: who gives them gives them on the host."""
        if isinstance(value, np.ndarray):
            return self.cupy.asarray(value) if value.dtype.kind in "bfc" else value
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
            copy = self.cupy.asnumpy(value).view(Carried)
            copy.origin = value
            return copy
        return self.each(self.to_host, value)

    def back(self, value):
        """What came from the device returns there; host arrays of the test's own stay."""
        if isinstance(value, Carried) and value.origin is not None:
            return value.origin
        return self.each(self.back, self.callback(value))

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
        parameters = list(inspect.signature(function).parameters)
        place = parameters.index("device") if "device" in parameters else None

        @functools.wraps(function)
        def call(*args, **options):
            if not by_a_test():
                return function(*args, **options)
            if place is not None and len(args) <= place:
                options.setdefault("device", "gpu")
            args = [
                self.to_device(value) if name in ON_DEVICE else self.back(value)
                for name, value in zip_longest(parameters[: len(args)], args)
            ]
            options = {
                name: self.to_device(value) if name in ON_DEVICE else self.back(value)
                for name, value in options.items()
            }
            return self.to_host(function(*args, **options))

        return call

    def watch(self, kind: type) -> None:
        """Attributes that a test reads are NumPy arrays, those that it sets device arrays."""
        get, put = kind.__getattribute__, kind.__setattr__

        def getter(instance, name):
            value = get(instance, name)
            return self.to_host(value) if self.holds(value) and by_a_test() else value

        def setter(instance, name, value):
            if isinstance(value, np.ndarray) and by_a_test():
                if isinstance(value, Carried) and value.origin is not None:
                    value.carry()  # after `x.data += 1`
                    value = value.origin
                else:
                    value = self.to_device(np.asarray(value))
            elif inspect.isfunction(value) and by_a_test():
                value = self.callback(value)
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
