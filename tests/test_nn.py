"""Modules and layers: names, state, initialisation, layouts."""

import numpy as np
import pytest

from ldm_numpy import ops
from ldm_numpy.nn import (
    Conv2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    ModuleList,
    Parameter,
    from_torch_layout,
    normal,
    to_torch_layout,
)
from ldm_numpy.tensor import Tensor


class Small(Module):
    """A module with a nested list, a bare parameter and attributes that are not parameters."""

    def __init__(self, seed=None):
        self.scale = Parameter((), "ones")
        self.layers = ModuleList([Linear(3, 3), None, Conv2d(2, 4, 3)])
        self.norm = LayerNorm(4)
        self.nothing = None
        self.number = 7
        if seed is not None:
            self.initialise(seed)


NAMES = [
    "scale",
    "layers.0.weight",
    "layers.0.bias",
    "layers.2.weight",
    "layers.2.bias",
    "norm.weight",
    "norm.bias",
]


def test_names_are_attribute_paths():
    model = Small()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert len(model.parameters()) == len(NAMES)
    assert model.count_parameters() == 1 + 12 + 3 * 3 * 2 * 4 + 4 + 8
    assert [name for name, _ in model.named_children()] == ["layers", "norm"]


def test_module_list():
    model = Small()
    assert len(model.layers) == 2
    assert list(model.layers) == [model.layers[0], model.layers[2]]


def test_storage_is_zero_until_initialised():
    model = Small()
    assert all(not array.any() for array in model.state_dict().values())
    model.initialise(3)
    assert all(array.any() for name, array in model.state_dict().items() if name != "norm.bias")


def test_initialisation_depends_on_name_and_seed_only():
    class Other(Module):
        def __init__(self):
            self.extra = Linear(5, 5)
            self.layers = ModuleList([Linear(3, 3)])
            self.initialise(3)

    a, b, c = Small(3).state_dict(), Other().state_dict(), Small(4).state_dict()
    np.testing.assert_array_equal(a["layers.0.weight"], b["layers.0.weight"])
    assert not np.array_equal(a["layers.0.weight"], c["layers.0.weight"])
    assert not np.array_equal(a["layers.0.weight"].ravel()[:3], a["layers.0.bias"])


def test_initial_spread():
    weight = Linear(100, 200)
    weight.initialise(0)
    assert abs(weight.weight.data).max() <= 0.1
    np.testing.assert_allclose(weight.weight.data.std(), 0.1 / 3**0.5, rtol=0.03)
    assert weight.bias.data.any()

    conv = Conv2d(4, 50, 5)
    conv.initialise(0)
    np.testing.assert_allclose(conv.weight.data.std(), 0.1 / 3**0.5, rtol=0.03)

    rows = Embedding(300, 100)
    rows.initialise(0)
    np.testing.assert_allclose(rows.weight.data.std(), 1, rtol=0.03)

    own = Linear(100, 200, init=normal(0.5))
    own.initialise(0)
    np.testing.assert_allclose(own.weight.data.std(), 0.5, rtol=0.03)
    assert not own.bias.data.any()
    assert own.weight.dtype == np.float32


@pytest.mark.host
def test_initialise_and_load_fill_the_storage_in_place():
    """Optimizers hold views of the storage: it must stay where it is."""
    model = Small()
    before = [parameter.data for parameter in model.parameters()]
    model.initialise(0)
    model.load_state_dict(Small(1).state_dict())
    after = [parameter.data for parameter in model.parameters()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    np.testing.assert_array_equal(before[1], Small(1).layers[0].weight.data)


def test_state_dict_is_a_copy():
    model = Small(0)
    state = model.state_dict()
    model.scale.data += 1
    assert state["scale"] == 1


def test_loading_converts_precision():
    model, state = Small(), Small(0).state_dict()
    model.load_state_dict({name: array.astype(np.float16) for name, array in state.items()})
    assert model.scale.dtype == np.float32
    np.testing.assert_allclose(model.layers[2].weight.data, state["layers.2.weight"], atol=1e-3)


def test_loading_is_strict_and_says_what_is_wrong():
    model = Small(0)
    before = model.state_dict()
    state = Small(1).state_dict()
    del state["norm.bias"]
    state["layer.0.weight"] = np.zeros(3, np.float32)
    state["layers.0.weight"] = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError) as error:
        model.load_state_dict(state)
    message = str(error.value)
    assert message.startswith("weights do not fit Small: ")
    assert "missing: norm.bias;" in message
    assert "unexpected: layer.0.weight;" in message
    assert "misshapen: layers.0.weight (3, 4) instead of (3, 3)" in message
    for name, array in model.state_dict().items():  # nothing was copied
        np.testing.assert_array_equal(array, before[name])


def test_long_lists_are_cut():
    state = {str(i): np.zeros(1) for i in range(20)} | Small(0).state_dict()
    with pytest.raises(ValueError, match=r"unexpected: 0, 1, 2, 3, 4, 5, 6, 7 and 12 more$"):
        Small().load_state_dict(state)


def test_train_and_eval_reach_everything():
    model = Small()
    assert model.training and model.layers[0].training
    assert model.eval() is model
    assert not model.training and not model.layers[0].training and not model.norm.training
    model.train()
    assert model.layers[0].training


def test_to_and_astype():
    model = Small(0).to("cpu").astype(np.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float64)}
    assert isinstance(model.norm.weight.data, np.ndarray)


def test_torch_layout_moves_square_matrices_too():
    model = Small(0)
    state = model.state_dict()
    theirs = to_torch_layout(model, state)
    np.testing.assert_array_equal(theirs["layers.0.weight"], state["layers.0.weight"].T)
    assert theirs["layers.2.weight"].shape == (4, 2, 3, 3)
    assert theirs["layers.2.weight"][3, 1, 0, 2] == state["layers.2.weight"][0, 2, 1, 3]
    back = from_torch_layout(model, theirs)
    assert list(back) == NAMES
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


def test_torch_layout_passes_on_what_does_not_fit():
    model = Small()
    state = {"layers.0.weight": np.zeros(9, np.float32), "what": np.ones(2, np.float32)}
    assert list(from_torch_layout(model, state)) == ["layers.0.weight", "what"]


def test_layers_are_their_ops(rng):
    x = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)

    linear = Linear(4, 3)
    conv = Conv2d(4, 6, 3, stride=2, padding=(0, 1, 0, 1), bias=False)
    group, silent = GroupNorm(2, 4, 1e-6, silu=True), GroupNorm(2, 4)
    layer = LayerNorm(4)
    table = Embedding(10, 4)
    for module in (linear, conv, group, silent, layer, table):
        module.initialise(0)
    assert conv.bias is None and linear(x).shape == (2, 6, 5, 3)
    pairs = [
        (linear(x), ops.linear(x, linear.weight, linear.bias)),
        (conv(x), ops.conv2d(x, conv.weight, stride=2, padding=(0, 1, 0, 1))),
        (group(x), ops.group_norm(x, group.weight, group.bias, groups=2, eps=1e-6, silu=True)),
        (silent(x), ops.group_norm(x, silent.weight, silent.bias, groups=2)),
        (layer(x), ops.layer_norm(x, layer.weight, layer.bias)),
        (table(np.array([[1, 9]])), ops.embedding(table.weight, np.array([[1, 9]]))),
    ]
    for ours, expected in pairs:
        assert isinstance(ours, Tensor) and ours.requires_grad and ours.dtype == np.float32
        np.testing.assert_array_equal(ours.data, expected.data)


def test_group_norm_refuses_unequal_groups():
    with pytest.raises(ValueError, match="10 channels cannot form 4 equal groups"):
        GroupNorm(4, 10)
