"""The stand-in for CuPy catches what a GPU would refuse or do otherwise; and what the library does
on it: the same numbers as on the host, and no waiting inside a training step."""

import numpy as np
import pytest

from ldm_numpy import ops, training
from ldm_numpy.backend import choose_device, to_host
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor, no_grad
from ldm_numpy.training import loop

from . import strict_backend, tiny
from .strict_backend import NAMES, cupy

pytestmark = pytest.mark.host  # it installs the stand-in by itself


@pytest.fixture
def counts():
    with strict_backend.installed() as found:
        yield found


@pytest.fixture
def x(counts):
    return cupy.asarray(np.arange(12.0).reshape(3, 4))


REFUSED = {
    "implicit conversion": (lambda x: np.asarray(x), TypeError, "Implicit conversion"),
    "conversion in an assignment": (
        lambda x: np.zeros((3, 4)).__setitem__(slice(None), x),
        TypeError,
        "Implicit conversion",
    ),
    "unknown name": (lambda x: cupy.nan_euclidean(x), AttributeError, "no attribute"),
    "name of NumPy alone": (lambda x: cupy.errstate, AttributeError, "no attribute 'errstate'"),
    "unknown method": (lambda x: x.newbyteorder(), AttributeError, "newbyteorder"),
    "unknown keyword": (lambda x: cupy.sum(x, where=True), TypeError, "keyword argument 'where'"),
    "unknown keyword of a method": (lambda x: x.max(initial=0), TypeError, "argument 'initial'"),
    "where of a ufunc": (lambda x: cupy.sqrt(x, where=x > 0), TypeError, "'where'"),
    "keyword of einsum": (lambda x: cupy.einsum("ij->i", x, out=x), TypeError, "'out'"),
    "too many arguments": (lambda x: cupy.sum(x, 0, None, None, False, 0), TypeError, "takes 5"),
    "mixed operands": (lambda x: x + np.ones(4), TypeError, "Unsupported type"),
    "mixed operands, NumPy first": (lambda x: np.ones(4) + x, TypeError, "Unsupported type"),
    "mixed in place": (lambda x: x.__imul__(np.ones(4)), TypeError, "Unsupported type"),
    "NumPy array gets a device array": (lambda x: np.ones(4).__iadd__(x[0]), TypeError, "Output"),
    "mixed in a function": (lambda x: cupy.where(x > 0, x, np.ones(4)), TypeError, "Unsupported"),
    "mixed in a list": (lambda x: cupy.concatenate([x, np.ones((1, 4))]), TypeError, "must be"),
    "assignment of a NumPy array": (
        lambda x: x.__setitem__(0, np.ones(4)),
        TypeError,
        "Unsupported type",
    ),
    "NumPy scalar to a reduction": (lambda x: cupy.sum(np.float32(3)), TypeError, "must be"),
    "Python number to a reduction": (lambda x: cupy.mean(3.0), TypeError, "must be"),
    "list to a reduction": (lambda x: cupy.max([1.0, 2.0]), TypeError, "must be"),
    "permutation": (
        lambda x: cupy.random.default_rng(0).permutation(3),
        AttributeError,
        "no attribute 'permutation'",
    ),
    "normal": (lambda x: cupy.random.default_rng(0).normal(), AttributeError, "'normal'"),
    "NumPy as index": (lambda x: x[np.array([0, 1])], TypeError, "no index"),
    "NumPy mask as index": (lambda x: x[np.ones(3, bool)], TypeError, "no index"),
    "array of strings": (lambda x: cupy.asarray(["a", "b"]), ValueError, "Unsupported dtype"),
    "array of objects": (lambda x: cupy.array([1, None]), ValueError, "Unsupported dtype"),
    "astype objects": (lambda x: x.astype(object), ValueError, "Unsupported dtype object"),
    "zeros of long double": (lambda x: cupy.zeros(3, np.longdouble), ValueError, "dtype"),
    "maximum.reduce": (lambda x: cupy.maximum.reduce(x), NotImplementedError, "maximum.reduce"),
    "multiply.at": (lambda x: cupy.multiply.at(x, 0, x[0]), NotImplementedError, "multiply.at"),
    "integer out of range": (lambda x: x[3], IndexError, "out of bounds"),
    "np.testing": (lambda x: np.testing.assert_allclose(x, 0), TypeError, "Implicit conversion"),
    "a reduction through a ufunc": (lambda x: np.add.reduce(x), TypeError, "not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, x):
    function, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        function(x)


def test_it_is_no_numpy_array(x):
    assert not isinstance(x, np.ndarray) and not isinstance(x.sum(), np.generic)
    assert x.sum().shape == () and x.sum().get() == 66  # no scalars


def test_an_index_out_of_range_wraps_silently(x):
    rows = x[cupy.asarray(np.array([0, 3, -1, 7]))]
    assert rows[:, 0].get().tolist() == [0, 0, 8, 4]
    columns = x[cupy.asarray(np.array([1])), cupy.asarray(np.array([5]))]
    assert columns.get().tolist() == [5]
    far = cupy.asarray(np.array([13, -1, 3]))
    assert cupy.take(x, far).get().tolist() == x.take(far).get().tolist() == [1, 11, 3]
    assert x.take(far, axis=0)[:, 0].get().tolist() == [4, 8, 0]
    assert cupy.take_along_axis(x, far[:, None], 1).get().tolist() == [[1], [7], [11]]
    assert cupy.take_along_axis(x, far, None).get().tolist() == [1, 11, 3]


def test_of_duplicates_any_may_win(counts):
    places = cupy.asarray(np.zeros(50, int))
    winners = set()
    for _ in range(20):
        y = cupy.zeros(3)
        y[places] = cupy.arange(50.0)
        winners.add(float(y[0]))
    assert len(winners) > 5
    y = cupy.zeros(3)
    cupy.add.at(y, places, cupy.ones(50))
    assert y.get().tolist() == [50, 0, 0]


def test_assignments_without_duplicates_are_numpys(rng, counts):
    host = rng.standard_normal((4, 5, 3))
    for index in [
        (1, slice(None, None, 2)),
        (np.array([2, 0]),),
        (np.array([0, 3]), np.array([4, 1])),
    ]:
        expected, y = host.copy(), cupy.asarray(host)
        value = rng.standard_normal(expected[index].shape)
        expected[index] = value
        there = tuple(cupy.asarray(i) if isinstance(i, np.ndarray) else i for i in index)
        y[there] = cupy.asarray(value)
        np.testing.assert_array_equal(y.get(), expected)
        np.testing.assert_array_equal(y[there].get(), value)


def test_sums_run_in_another_order(rng, counts):
    a, b = rng.standard_normal((2, 300, 300)).astype(np.float32)
    x, y = cupy.asarray(a), cupy.asarray(b)
    for ours, numpys in [
        (x.sum(), a.sum()),
        (x.mean(axis=0), a.mean(axis=0)),
        (x @ y, a @ b),
        (cupy.einsum("ij,kj->ik", x, y), np.einsum("ij,kj->ik", a, b)),
        (cupy.var(x, axis=1), a.var(axis=1)),
        (cupy.linalg.norm(x, axis=1), np.linalg.norm(a, axis=1)),
        (cupy.linalg.norm(x), np.linalg.norm(a)),
        (cupy.vdot(x, y), np.vdot(a, b)),
        (x.cumsum(axis=0), a.cumsum(axis=0)),
    ]:
        assert (ours.get() != numpys).any()
        np.testing.assert_allclose(ours.get(), numpys, rtol=1e-3, atol=1e-4)


def test_new_memory_holds_anything(counts):
    assert np.isnan(cupy.empty((2, 3)).get()).all()


def test_what_costs_time_is_counted(x, counts):
    counts.clear()
    y = cupy.exp(x.T.reshape(4, 3, 1)[2:4, 0] * 2).ravel()
    assert counts["launches"] == 2 and not counts["synchronisations"]  # views are free
    x.T.reshape(-1), cupy.reshape(x.T, -1), x.T.ravel()  # no view: columns become rows
    assert counts["launches"] == 5 and counts["launch of reshape"] == 2
    float(y.sum()), bool(y[0] > 0), y[1].item(), int(y[0]), y.get(), cupy.asnumpy(y)
    assert counts["synchronisations"] == 6 and counts["to host"] == 2
    cupy.asarray(np.ones(3)), cupy.array(np.ones(3)), cupy.asarray(x)
    assert counts["to device"] == 2
    assert x[[0, 2, 5]][:, 0].get().tolist() == [0, 8, 8] and counts["to device"] == 3
    counts.clear()  # a list as index is copied there; as a mask, it is also waited for
    assert x[[True, False, True]][:, 0].get().tolist() == [0, 8] and x[[]].shape == (0, 4)
    assert counts["to device"] == 2 and counts["synchronisation by mask"] == 1


@pytest.mark.parametrize(
    "function",
    [cupy.unique, cupy.nonzero, cupy.argwhere, cupy.flatnonzero, cupy.where, lambda x: x.nonzero()],
)
def test_a_result_as_long_as_the_values_say_is_waited_for(function, x, counts):
    function(x)
    assert counts["synchronisations"] == 1


@pytest.mark.parametrize(
    "function",
    [
        lambda x, two: cupy.zeros(two),
        lambda x, two: cupy.zeros((3, two)),
        lambda x, two: cupy.arange(two),
        lambda x, two: cupy.sum(x, axis=two - 1),
        lambda x, two: x.sum(two - 1),
        lambda x, two: x.reshape(two, 6),
        lambda x, two: cupy.reshape(x, (two, 6)),
        lambda x, two: x.transpose((two - 1, 0)),
        lambda x, two: cupy.roll(x, two),
        lambda x, two: x.repeat(two),
        lambda x, two: x[:two],
        lambda x, two: range(two),
    ],
)
def test_a_parameter_on_the_device_is_waited_for(function, x, counts):
    two = cupy.asarray(np.array(2))
    counts.clear()
    function(x, two)
    assert counts["synchronisations"] >= 1


def test_copies_to_the_host_are_counted(x, counts, tmp_path):
    copies = [x.tobytes, lambda: x.tofile(tmp_path / "x"), lambda: x.dump(tmp_path / "y"), x.dumps]
    for count, copy in enumerate(copies, 1):
        copy()
        assert counts["to host"] == counts["synchronisations"] == count


def test_a_comparison_of_arrays_is_an_array(x, counts):
    for equal in (cupy.allclose(x, x), cupy.array_equal(x, x)):
        assert isinstance(equal, cupy.ndarray) and not counts["synchronisations"]
        assert equal and counts.pop("synchronisations") == 1


def test_running_sums_are_numpys(rng, counts):
    for shape, axis in [((7,), None), ((1, 4), 0), ((5, 6), 1), ((5, 6), -2), ((3, 2), None)]:
        a = rng.standard_normal(shape)
        x = cupy.asarray(a)
        np.testing.assert_allclose(cupy.cumsum(x, axis).get(), np.cumsum(a, axis))
        np.testing.assert_allclose(x.cumprod(axis=axis).get(), a.cumprod(axis=axis))
    assert cupy.vdot(cupy.asarray(2.0), cupy.asarray(3.0)).get() == 6  # numbers too
    out = cupy.empty(7)
    cupy.cumsum(cupy.arange(7.0), out=out)
    assert out.get().tolist() == [0, 1, 3, 6, 10, 15, 21]


def test_every_name_of_the_library_is_known():
    """Those after `xp.`, by text: also where no test comes by."""
    import re
    from pathlib import Path

    import ldm_numpy

    names = set()
    for path in Path(ldm_numpy.__file__).parent.rglob("*.py"):
        names |= set(re.findall(r"\bxp\.(\w+)", path.read_text()))
    assert len(names) > 25
    assert not names - NAMES["modules"]["cupy"].keys()


def test_a_device_is_found(counts):
    assert choose_device() == choose_device("gpu") == "gpu"


# The library on it -------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(loop.Log, "plot", lambda self: None)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_training_ends_where_it_does_on_the_host(kind, quick, tmp_path):
    """Weights after six steps; pictures, logs and checkpoints are written on the way."""
    ends = {}
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        folder.mkdir()
        with strict_backend.installed():
            stage = tiny.stage(kind, device=device)
            loop.run(stage, folder, 0, device=device, threads=1)
            ends[device] = {
                f"{name}.{key}": array
                for name, network in stage.networks.items()
                for key, array in network.state_dict().items()
            }
    for name, array in ends["cpu"].items():
        if name.endswith("k_proj.bias"):  # no gradient but rounding, which Adam makes large
            continue
        difference = np.linalg.norm(ends["gpu"][name] - array)
        assert difference <= 2e-2 * np.linalg.norm(array) + 1e-4, name
    assert {p.name for p in (tmp_path / "gpu").iterdir()} == {
        p.name for p in (tmp_path / "cpu").iterdir()
    }


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_training_step_does_not_wait(kind, counts):
    """From the batch to the averaged weights; only the batch goes to the device."""
    stage, shards = tiny.stage(kind, device="gpu"), Shards(None)
    optimizer, ema = loop.prepare(stage, shards)
    stage.before_steps()
    stage.gradients(1, shards, optimizer.parameters)  # a frozen encoder keeps what it has read
    counts.clear()
    optimizer.zero_grad()
    stage.gradients(1, shards, optimizer.parameters)
    optimizer.clip_gradient(1.0)
    optimizer.step(1e-3)
    stage.after_step()
    ema.update()
    waits = {k: n for k, n in counts.items() if k.startswith("sync") or k == "to host"}
    assert counts["launches"] > 50
    assert not waits
    assert counts["to device"] <= 6


def test_drawing(counts):
    drawn = {}
    for device in ("cpu", "gpu"):
        pipe = tiny.text_to_image(device=device)
        drawn[device] = pipe.decode(pipe.sample(["a thin 3", "seven"], seed=1, guidance_scale=2.0))
        assert isinstance(drawn[device], np.ndarray)
    np.testing.assert_allclose(drawn["gpu"], drawn["cpu"], atol=1e-4)


def test_a_run_from_beginning_to_end(monkeypatch, quick, tmp_path, counts):
    run = tiny.run_all(monkeypatch, tmp_path, device="gpu")
    assert isinstance(run, training.Run)
    run.fit("all")
    assert (tmp_path / "model" / "unet.safetensors").is_file()


def test_a_host_array_that_slips_in_is_caught(counts):
    """The reason for it all."""
    weight = Tensor(cupy.asarray(np.ones((4, 3))))
    with no_grad(), pytest.raises(TypeError, match="Unsupported type"):
        ops.linear(Tensor(np.ones((2, 4))), weight)
    assert to_host(ops.linear(Tensor(cupy.ones((2, 4))), weight).data).shape == (2, 3)
