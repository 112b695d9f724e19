"""The benchmark's own parts, without PyTorch: what is counted, compared, fitted and printed."""

import dataclasses
import json
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import __main__ as command
from benchmarks import counting, launches, ours, report, sections, turns
from benchmarks import workloads as w
from ldm_numpy import ops
from ldm_numpy.models import unet
from ldm_numpy.models.unet import UNet
from ldm_numpy.nn import Conv2d, Linear
from ldm_numpy.processes import can_fork
from ldm_numpy.tensor import Tensor
from ldm_numpy.training import loop

SMALL = {"batch": 4, "shard": 2, "threads": 1}


def test_specifications_survive_json_and_have_inputs():
    assert len(w.TIMED) == 3 + 2 + 13
    everything = [*w.TIMED.values(), *(s for sweep in w.scaling().values() for s in sweep.values())]
    for spec in everything:
        assert json.loads(json.dumps(spec)) == spec
        if spec["kind"] != "sample":
            found = w.inputs(spec | {"batch": 4})
            assert any(len(a) == 4 for a in found.values())
            assert all(a.dtype in (np.float32, np.int64, bool) for a in found.values())
    assert (
        set(w.scaling())
        == set(report.REASONS)
        == {"batch", "threads", "image side", "channels", "tokens"}
    )


def test_names_are_chosen_in_order():
    assert sections.chosen(["memory", "ops", "unet"]) == ["unet", *w.OPS, "memory"]
    assert sections.chosen(None) == [*w.TIMED, *sections.SECTIONS]


def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch):
    assert command.main(["--only", "unet", "magic"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "magic" in error and "conv-64@8" in error
    with pytest.raises(SystemExit) as stopped:
        command.main(["--fast"])
    assert stopped.value.code == 2
    monkeypatch.setitem(sys.modules, "torch", None)
    assert command.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "PyTorch is missing" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_operations_of_single_layers_by_hand():
    x = Tensor(np.zeros((2, 8, 8, 3), np.float32), requires_grad=True)
    conv = counting.counted(lambda: Conv2d(3, 5, 3, stride=2, padding=1)(x))
    assert conv.forward == 2 * (2 * 4 * 4) * (9 * 3) * 5
    assert conv.step == 3 * conv.forward
    assert sorted(conv.products) == sorted([(32, 27, 5), (27, 32, 5), (32, 5, 27)])
    linear = counting.counted(lambda: Linear(3, 7)(x.data))  # no gradient in x: one product less
    assert linear.forward == 2 * (2 * 8 * 8) * 3 * 7
    assert linear.step == 2 * linear.forward
    q, k = Tensor(np.zeros((2, 6, 8), np.float32)), Tensor(np.zeros((2, 5, 8), np.float32))
    attention = counting.counted(lambda: ops.attention(q, k, k, heads=2))
    assert attention.forward == 2 * (2 * 2 * 6 * 5 * 8)
    assert ops.attention.__module__.startswith("ldm_numpy")  # put back


def unet_by_hand(config, side: int, tokens: int) -> int:
    """Operations of a forward pass of one image, layer by layer."""
    total = 0
    first, context = config.block_out_channels[0], config.cross_attention_dim

    def conv(pixels, cin, cout, kernel=3):
        return 2 * pixels * kernel**2 * cin * cout

    def block(pixels, cin, cout):
        shortcut = conv(pixels, cin, cout, 1) if cin != cout else 0
        time = 2 * 4 * first * cout
        return conv(pixels, cin, cout) + time + conv(pixels, cout, cout) + shortcut

    def transformer(pixels, c):
        own = 2 * pixels * c * (4 * c) + 4 * pixels * pixels * c
        cross = 2 * (2 * pixels * c * c + 2 * tokens * context * c) + 4 * pixels * tokens * c
        feed_forward = 2 * pixels * c * (8 * c + 4 * c)
        layers = config.transformer_layers_per_block
        return 2 * conv(pixels, c, c, 1) + layers * (own + cross + feed_forward)

    def stage(pixels, cin, cout, attends):
        return block(pixels, cin, cout) + (transformer(pixels, cout) if attends else 0)

    widths, pixels = config.block_out_channels, side * side
    total += 2 * (first * 4 * first + (4 * first) ** 2) + conv(pixels, config.in_channels, first)
    channels, skips = first, [first]
    for i, width in enumerate(widths):
        for _ in range(config.layers_per_block):
            total += stage(pixels, channels, width, config.attention_levels[i])
            channels = width
            skips.append(width)
        if i < len(widths) - 1:
            pixels //= 4
            total += conv(pixels, width, width)
            skips.append(width)
    total += 2 * block(pixels, channels, channels) + transformer(pixels, channels)
    for i in reversed(range(len(widths))):
        for _ in range(config.layers_per_block + 1):
            cin = channels + skips.pop()
            total += stage(pixels, cin, widths[i], config.attention_levels[i])
            channels = widths[i]
        if i > 0:
            pixels *= 4
            total += conv(pixels, channels, channels)
    return total + conv(pixels, first, config.out_channels)


def test_operations_of_the_unet_by_hand():
    spec = w.STEPS["unet"]
    counted = counting.of_spec(spec)
    assert counted.forward == unet_by_hand(w.unet_config(spec), w.LATENT, w.TOKENS)
    assert counting.of_spec(spec, 3).forward == 3 * counted.forward
    assert 2.9 * counted.forward < counted.step < 3 * counted.forward


@pytest.mark.parametrize("kind", w.STAGES)
def test_our_step_is_the_training_loops(kind):
    """Every parameter moves, and outputs have something to be compared by."""
    job = ours.build(SMALL | {"kind": kind})
    job.start()
    found = job.check()
    before = {n: p.data for n, p in w.network(kind, SMALL).named_parameters()}
    for name, start in before.items():
        assert np.any(found[f"gradient/{name}"]), name
        assert found[f"weights/{name}"].size == start.size
        assert not np.array_equal(found[f"weights/{name}"], found[f"average/{name}"])
    assert np.isfinite(found["loss"])


@pytest.mark.skipif(not can_fork(), reason="processes are Linux's")
@pytest.mark.parametrize("kind", w.STAGES)
def test_our_step_over_processes_computes_the_same(kind):
    """And while one job has its processes, another can begin and end."""
    found = []
    other = ours.build(SMALL | {"kind": "unet", "threads": 2})
    for threads in (1, 2):
        job = ours.build(SMALL | {"kind": kind, "threads": threads})
        job.start()
        found.append(job.check())
        assert job.ring.size == threads
        if threads == 2:
            other.start()
            other.run()
        job.end()
    other.end()
    for name, expected in found[0].items():
        np.testing.assert_array_equal(found[1][name], expected)


def test_our_step_takes_the_settings_of_the_stage(monkeypatch):
    prepared = []
    prepare = loop.prepare
    monkeypatch.setattr(loop, "prepare", lambda *a: prepared.append(a) or prepare(*a))
    job = ours.build({"kind": "unet", "batch": 4})
    job.start()
    (arguments,) = prepared
    # PyTorch's optimizer here is AdamW, whatever the stage has; all else is the stage's.
    assert arguments[0].config == dataclasses.replace(w.STAGES["unet"], optimizer="adamw")
    assert job.shards.size == w.STAGES["unet"].shard_size


@pytest.mark.parametrize("name", ["conv-32@16", "norm-64@8", "attention-64"])
def test_our_operations_do_not_depend_on_shards(name):
    spec = w.TIMED[name] | {"batch": 4, "threads": 1}
    whole = ours.build(spec | {"shard": 4}).check()
    parts = ours.build(spec | {"shard": 1}).check()
    assert whole.keys() == parts.keys() and len(whole) == 4
    assert turns.compare(whole, parts, name) < 1e-5


def test_comparison_finds_differences():
    one = {"y": np.ones(100), "gradient/a": np.ones(3), "gradient/b": np.zeros(2)}
    near = one | {"y": np.ones(100) + 1e-6, "gradient/b": np.full(2, 1e-9)}
    assert turns.compare(one, near, "x") == pytest.approx(1e-6, rel=0.01)
    for wrong in (
        one | {"y": np.ones(100) * 1.001},
        one | {"gradient/a": np.array([1, 1, 1.01])},
        one | {"y": np.full(100, np.nan)},
        one | {"y": np.ones((10, 10))},
        {"y": one["y"]},
    ):
        with pytest.raises(turns.Mismatch, match="x"):
            turns.compare(one, wrong, "x")


def test_ratio_is_taken_turn_by_turn_against_the_better_setting():
    times = {"ours": [1.0, 2.0, 3.0], "torch": [2.0, 2.0, 2.0], "torch-last": [1.0, 4.0, 3.0]}
    found = turns.ratios(times)
    assert found["better"] == "torch"
    assert found["ratio"] == {"median": 1.0, "low": 0.5, "high": 1.5}


def test_slope_of_a_power():
    fit = sections.slope({str(n): 3e-3 * n**1.5 for n in (8, 16, 64)})
    assert fit["slope"] == pytest.approx(1.5) and fit["off"] == pytest.approx(1)


def results() -> dict:
    """What a whole run might have found."""

    def spread(value):
        return {"median": value, "low": value * 0.9, "high": value * 1.1}

    row = {side: spread(0.5) for side in ("ours", "torch", "torch-last")}
    timed = {name: row | {"ratio": spread(0.9), "better": "torch", "parity": 2e-6}
             for name in w.TIMED}  # fmt: skip
    timed["unet"] = timed["unet"] | {"ratio": spread(1.5)}
    rates = {f"{name} {t}": spread(75.0 * t) for name in ("shapes", "cube") for t in (1, 2)}
    shares = ("share", "share of the cube", "gain", "sgemm gain", "gain share", "torch gain")
    sweeps = {
        sweep: {
            "seconds": {s: {str(v): 1e-3 * v for v in specs} for s in row},
            "fits": {s: {"slope": 1.0, "off": 1.1} for s in row},
            "counted": 2.0 if sweep == "channels" else 1.0,
        }
        for sweep, specs in w.scaling().items()
    }
    return {
        "machine": dict.fromkeys(("processor", "cores", "python", "numpy", "blas", "torch"), "1"),
        "others": 0.01,
        "timed": timed,
        "limit": {"operations": 6e10, "threads": 2, "sgemm": rates, "step": spread(120.0)}
        | {share: spread(0.95) for share in shares},
        "memory": {"ours": 4e8, "torch": 9e8, "torch-last": 8e8},
        "start": {n: spread(0.2) for n in ("import ldm_numpy", "import torch", "first step")},
        "overhead": {side: {"forward": 3.0, "both": 9.0} for side in row},
        "scaling": sweeps,
        "gpu": {"batch": 64, "launches": 3000, "of the update": 900, "with AdamW": 20,
                "matrix products": 700, "bytes": 5e9, "operations": 3e10, "most": {"add": 600}},
    }  # fmt: skip


def test_page_says_what_is_met_and_what_is_missed():
    text = report.page(results())
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if "|" in line}
    assert rows["U-Net training step, batch 128"].count("1.50") == 1
    lines = text.splitlines()
    targets = {line.split(" | ")[0].strip("| "): line for line in lines if line.count("|") == 6}
    assert "**missed**" in targets["U-Net training step, batch 128"]
    assert "aim reached" in targets["autoencoder training step"]
    assert "aim reached" in targets["peak memory of the U-Net training step, above import"]
    assert "| >= 60% | >= 80% | 95% | aim reached |" in text
    assert "| >= 93% | >= 98% | 95% | met |" in text
    assert "| <= 0.30 |  | 0.20 | met |" in text
    assert report.REASONS["channels"][0] in text and report.REASONS["batch"][0] not in text


def test_page_of_a_part():
    whole = results()
    part = {key: whole[key] for key in ("machine", "others", "memory")}
    text = report.page(part)
    assert "400 MB" in text and "Scaling" not in text and "autoencoder" not in text


def test_picture_is_small(tmp_path):
    report.picture(results(), tmp_path / "r.png")
    assert 10_000 < (tmp_path / "r.png").stat().st_size <= 150_000


def test_launches_are_counted_on_the_path_a_gpu_takes():
    one, two = launches.count(2), launches.count(4)
    for name in ("launches", "of the update", "matrix products", "with AdamW"):
        assert one[name] == two[name]  # one shard, whatever the batch
    assert one["launches"] > 1000 and one["with AdamW"] < 40
    shapes = {p.shape for p in UNet(unet.MNIST).parameters() if p.ndim > 1}
    assert one["of the update"] < 60 * len(shapes)  # one stack of matrices for each shape
    assert "ones" not in one["most"]  # such constants are made once, and kept
    assert one["bytes"] < two["bytes"] < 2 * one["bytes"]
    assert two["operations"] == 2 * one["operations"]
    assert "bound by" in launches.table(one)


def test_launches_of_a_few_operations_by_hand():
    xp, before = launches.Module(), launches.launched.total()
    x = xp.asarray(np.ones((4, 6), np.float32))
    assert launches.launched.total() == before  # a copy to the device is no kernel
    y = x.reshape(6, 4).T[:2]  # views
    assert launches.launched.total() == before and y.shape == (2, 6)
    y = xp.exp(x * 2) @ xp.zeros((6, 3), np.float32)  # *, exp, zeros, @
    y += 1
    y[:, 0] = 0
    y = y.T.reshape(-1)  # a copy
    assert launches.launched.total() == before + 7
    assert isinstance(y, launches.Array) and y.host.dtype == np.float32


def test_sides_agree():
    pytest.importorskip("torch")
    with turns.Turns(1, 0.0, log=lambda text: None) as three:
        jobs = {kind: SMALL | {"kind": kind} for kind in w.STAGES}
        jobs["sample"] = {"kind": "sample", "batch": 2, "steps": 2}
        jobs |= {n: w.TIMED[n] | {"batch": 4} for n in ("conv-32@16", "norm-64@8", "attention-64")}
        times, errors = three.measure(jobs)
    assert times.keys() == errors.keys() == jobs.keys()
    assert max(errors.values()) < turns.TOLERANCE
    assert all(len(values) == 1 for job in times.values() for values in job.values())
