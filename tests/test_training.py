"""The three stages on a few hundred digits: what a training must keep, whatever it learns."""

import csv
import dataclasses
import hashlib
import inspect
import json
import struct
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from ldm_numpy import backend, checkpoint, files, images, model_folder, training
from ldm_numpy.backend import to_host
from ldm_numpy.data import captions, mnist
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor
from ldm_numpy.training import loop
from ldm_numpy.training.autoencoder import encode_moments
from ldm_numpy.training.dataset import shifted
from ldm_numpy.training.loop import StageConfig, load_trained, run
from ldm_numpy.training.unet import UNetStage

from . import tiny
from .tiny import KINDS


class Killed(BaseException):
    """What no `except Exception` catches, as with a real kill."""


@pytest.fixture(autouse=True)
def _no_loss_curves(monkeypatch):
    """Importing matplotlib would take longer than all trainings here."""
    monkeypatch.setattr(loop.Log, "plot", lambda self: None)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """kind -> the folder and the stage of a training to the end, on one thread."""
    done = {}

    def train(kind):
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            stage = tiny.stage(kind)
            run(stage, folder, 0, threads=1)
            done[kind] = folder, stage
        return done[kind]

    return train


def file(folder, kind, suffix="safetensors"):
    return folder / f"{kind.partition('-')[0]}.{suffix}"


def rows(folder, kind):
    """The log without the seconds, its last column."""
    with open(file(folder, kind, "csv"), newline="") as lines:
        return [row[:-1] for row in csv.reader(lines)]


# The same bits -----------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bits_on_any_number_of_threads(kind, undisturbed, tmp_path):
    """The checkpoint holds weights, averages and moments: equal files, equal everything."""
    expected = file(undisturbed(kind)[0], kind).read_bytes()
    for threads in (2, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        run(tiny.stage(kind, threads=threads), folder, 0, threads=threads)
        assert file(folder, kind).read_bytes() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind, undisturbed):
    stage, start = undisturbed(kind)[1], tiny.stage(kind)
    for name, network in stage.networks.items():
        before = start.networks[name].state_dict()
        assert not [k for k, array in network.state_dict().items() if (array == before[k]).all()]


def test_another_seed_another_training(undisturbed, tmp_path):
    arrays, _ = checkpoint.load(file(undisturbed("classifier")[0], "classifier"))
    run(tiny.stage("classifier", seed=1), tmp_path, 1, threads=1)
    others, _ = checkpoint.load(file(tmp_path, "classifier"))
    assert arrays.keys() == others.keys()
    assert not any((arrays[k] == others[k]).all() for k in arrays if k.startswith("ema/"))


# Killed and resumed ------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_is_never_killed(kind, undisturbed, tmp_path, monkeypatch):
    """Killed two steps after the checkpoint, resumed by another process (a fresh stage) with
    another number of threads."""
    stage = tiny.stage(kind)
    after_step, updates = stage.after_step, []

    def fatal():
        after_step()
        updates.append(None)
        if len(updates) == 5:
            raise Killed

    monkeypatch.setattr(stage, "after_step", fatal)
    with pytest.raises(Killed):
        run(stage, tmp_path, 0, threads=1)
    _, metadata = checkpoint.load(file(tmp_path, kind))
    assert metadata["step"] == 3

    resumed = tiny.stage(kind)
    run(resumed, tmp_path, 0, resume=True, threads=2)
    folder, expected = undisturbed(kind)
    assert file(tmp_path, kind).read_bytes() == file(folder, kind).read_bytes()
    assert rows(tmp_path, kind) == rows(folder, kind)
    for name, network in resumed.networks.items():
        for key, array in network.state_dict().items():
            np.testing.assert_array_equal(array, expected.networks[name].state_dict()[key])


@pytest.mark.parametrize("moment", ["while drawing", "while saving", "between log and checkpoint"])
def test_killed_at_an_awkward_moment(moment, undisturbed, tmp_path, monkeypatch):
    """At step 6, but for the drawing at step 3: what was saved at step 3 is still there."""
    stage = tiny.stage("classifier", sample_every=3)
    save, saves = loop.save_checkpoint, []

    def fatal(*args):
        raise Killed

    def fatal_save(*args):
        saves.append(args[-2])  # the step
        if saves == [3, 6]:
            if moment == "between log and checkpoint":
                raise Killed
            patch.setattr(files.os, "replace", fatal)
        save(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if moment == "while drawing":
            patch.setattr(stage, "draw", fatal)
        else:
            patch.setattr(loop, "save_checkpoint", fatal_save)
        run(stage, tmp_path, 0, threads=1)
    assert checkpoint.load(file(tmp_path, "classifier"))[1]["step"] == 3
    run(tiny.stage("classifier", sample_every=3), tmp_path, 0, resume=True, threads=1)
    folder, _ = undisturbed("classifier")
    ours, theirs = (checkpoint.load(file(f, "classifier"))[0] for f in (tmp_path, folder))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert rows(tmp_path, "classifier") == rows(folder, "classifier")


@pytest.mark.parametrize("newest", [b"damaged", None])
def test_the_older_checkpoint_takes_the_place_of_a_damaged_one(newest, tmp_path):
    """At once, not with the next save; a missing one is as good as damaged."""
    path, older, damaged = (file(tmp_path, "unet", f"{word}safetensors")
                            for word in ("", "previous.", "damaged."))  # fmt: skip
    older.write_bytes(b"older")
    if newest:
        path.write_bytes(newest)
    loop.reinstate(path)
    assert path.read_bytes() == b"older" and not older.exists()
    assert (damaged.read_bytes() if damaged.exists() else None) == newest


def test_resuming_a_finished_training_leaves_it_alone(undisturbed, tmp_path):
    folder, expected = undisturbed("classifier")
    content = file(folder, "classifier").read_bytes()
    file(tmp_path, "classifier").write_bytes(content)
    stage = tiny.stage("classifier")
    run(stage, tmp_path, 0, resume=True)
    assert file(tmp_path, "classifier").read_bytes() == content
    for key, array in expected.network.state_dict().items():
        np.testing.assert_array_equal(stage.network.state_dict()[key], array)


def test_resuming_what_never_began_begins(undisturbed, tmp_path):
    run(tiny.stage("classifier"), tmp_path, 0, resume=True, threads=1)
    expected = file(undisturbed("classifier")[0], "classifier")
    assert file(tmp_path, "classifier").read_bytes() == expected.read_bytes()


# Refusals ----------------------------------------------------------------------------------


def test_a_training_is_never_overwritten(undisturbed):
    folder, _ = undisturbed("classifier")
    before = file(folder, "classifier").read_bytes()
    with pytest.raises(ValueError, match=r"classifier\.safetensors exists: .*--resume"):
        run(tiny.stage("classifier"), folder, 0)
    assert file(folder, "classifier").read_bytes() == before


@pytest.mark.parametrize(
    "options, seed, words",
    [
        ({"batch_size": 24}, 0, "batch_size was 20 and is now 24"),
        ({"steps": 9}, 0, "steps was 6 and is now 9"),
        ({"learning_rate": 1e-3}, 0, "learning_rate was 0.002 and is now 0.001"),
        ({"shard_size": 5}, 0, "shard_size was 8 and is now 5"),
        ({}, 1, "seed was 0 and is now 1"),
    ],
)
def test_other_options_are_refused_by_name(options, seed, words, undisturbed):
    folder, _ = undisturbed("classifier")
    before = file(folder, "classifier").read_bytes()
    with pytest.raises(ValueError, match="made with other options") as error:
        run(tiny.stage("classifier", seed=seed, **options), folder, seed, resume=True)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count(" and is now ") == 1  # the difference, and nothing else
    assert file(folder, "classifier").read_bytes() == before


def test_a_checkpoint_without_the_optimizers_state_is_refused(undisturbed, tmp_path):
    folder, _ = undisturbed("classifier")
    arrays, metadata = checkpoint.load(file(folder, "classifier"))
    del arrays["optimizer/m"]
    checkpoint.save(file(tmp_path, "classifier"), arrays, metadata)
    with pytest.raises(ValueError, match="cannot be gone on from: it has no optimizer/m"):
        run(tiny.stage("classifier"), tmp_path, 0, resume=True)


@pytest.mark.host  # weights are moved in place
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_loss_that_is_reported(kind):
    """Along the gradient g the loss grows by |g| a unit: less where a part of it has none."""
    stage = tiny.stage(kind)
    shards = Shards(stage.config.shard_size, threads=1)
    optimizer, _ = loop.prepare(stage, shards)
    stage.before_steps()
    rng = np.random.default_rng(0)  # some layers begin at zero, and those behind them get nothing
    optimizer.weights += np.float32(0.02) * rng.standard_normal(optimizer.weights.shape, np.float32)

    def loss(moved):
        optimizer.weights[...] += moved
        optimizer.zero_grad()
        value = float(stage.gradients(0, shards, optimizer.parameters)[0])
        gradient = optimizer.gradient.copy()
        optimizer.weights[...] -= moved
        return value, gradient

    _, g = loss(0.0)
    norm = float((g * g).sum()) ** 0.5
    reach = 0.01 / max(norm, 1.0)
    along = g * np.float32(reach / norm)
    (up, _), (down, _) = loss(along), loss(-along)
    assert (up - down) / (2 * reach) == pytest.approx(norm, rel=0.01)


def test_what_an_answer_of_zero_costs():
    """All classes alike; all texts of a batch alike; the pixels themselves; noise of variance 1."""
    wanted = {"classifier": np.log(10), "noisy": np.log(10), "clip": np.log(20), "pixel": 1.0}
    for kind, loss in wanted.items():
        stage = tiny.stage(kind, batch_size=20)
        assert stage.baselines["loss"] == pytest.approx(loss, abs=1e-4)
    assert tiny.stage("clip", batch_size=20).baselines["loss"] == 2.9957  # as a log shows it
    stage = tiny.stage("autoencoder")
    padded = np.pad(stage.test.images[:1000], ((0, 0), (2, 2), (2, 2))) / 127.5 - 1
    assert stage.baselines["mse"] == pytest.approx((padded**2).mean(), abs=1e-3)


@pytest.mark.host
def test_the_perceptual_loss_is_over_all_feature_maps(rng):
    """The sum over maps of mean (f(decoded) - f(x))^2 / mean f(x)^2, of the middle of pictures."""
    stage = tiny.stage("autoencoder")
    side = stage.perceptual.config.image_size
    x = rng.standard_normal((3, 32, 32, 1)).astype(np.float32)
    decoded = x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)
    edge = (32 - side) // 2
    inner = slice(edge, edge + side)
    maps = [[f.data for f in stage.perceptual.features(a[:, inner, inner])] for a in (decoded, x)]
    assert len(maps[0]) > 1
    expected = sum(((got - want) ** 2).mean() / (want**2).mean() for got, want in zip(*maps))
    assert stage.perceptual_loss(Tensor(decoded), x).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.host
def test_the_autoencoders_loss_by_hand():
    """L = mean (x' - x)^2 + perceptual_weight P + kl_weight KL / pixels, of 32 x 32 pixels."""
    stage = tiny.stage("autoencoder", kl_weight=2.0, perceptual_weight=0.3)
    network = tiny.randomise(stage.network)
    loss, *parts = map(float, stage.gradients(0, Shards(None, 1), network.parameters()))
    index = mnist.batch_indices(len(stage.train), 20, 0, 0)
    x = images.pad_to(stage.train.pixels(index), 32)
    mean, logvar = (t.data for t in network.encode(x))
    noise = backend.generator(0, "autoencoder", 0, "noise").standard_normal(mean.shape, np.float32)
    decoded = network.decode(mean + np.exp(logvar / 2) * noise)
    mse = ((decoded.data - x) ** 2).mean()
    perceptual = stage.perceptual_loss(decoded, x).item()
    kl = (mean**2 + np.exp(logvar) - 1 - logvar) / 2  # of each number of the latent
    assert parts == pytest.approx([mse, perceptual, kl.mean()], rel=1e-4)
    expected = mse + 0.3 * perceptual + 2 * kl.sum() / 20 / 32**2
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.host
def test_scaled_latents_have_deviation_one():
    """Those that training draws, mean + std z, of an encoder whose std is not 1."""
    stage = tiny.stage("autoencoder")
    network = tiny.randomise(stage.network)
    shards = Shards(50, threads=1)
    scale = stage.measure(shards)["latent_scale"]
    mean, std = encode_moments(network, stage.train.images, stage.padded_size, shards, "cpu", scale)
    assert not 0.9 < std.mean() < 1.1
    z = np.random.default_rng(0).standard_normal((20, *mean.shape))
    assert (mean + std * z).std() == pytest.approx(1, rel=0.01)


def test_a_fingerprint_is_of_every_pixel_and_label():
    """Checkpoints hold it: it must stay what it was."""
    data = tiny.digits("train")
    digest = hashlib.sha256(data.images.tobytes() + data.labels.astype("<i8").tobytes())
    assert data.fingerprint() == digest.hexdigest()[:16]


def test_another_network_or_other_data_are_refused(undisturbed):
    folder, _ = undisturbed("classifier")
    stage = tiny.stage("classifier")
    stage.network.config = dataclasses.replace(tiny.CLASSIFIER, embedding_dim=9)
    with pytest.raises(ValueError, match=r"options: network.embedding_dim was 8 and is now 9$"):
        run(stage, folder, 0, resume=True)
    stage = tiny.stage("classifier")
    images = stage.train.images.copy()
    images[7, 14, 14] ^= 1
    stage.train = dataclasses.replace(stage.train, images=images)
    with pytest.raises(ValueError, match="other options: data was"):
        run(stage, folder, 0, resume=True)


def test_frozen_does_not_go_on_as_joint(undisturbed):
    folder, _ = undisturbed("unet-frozen")
    with pytest.raises(ValueError, match="text_encoder was 'frozen' and is now 'joint'"):
        run(tiny.stage("unet-joint"), folder, 0, resume=True)


def test_a_stage_needs_the_one_before(tmp_path, monkeypatch, undisturbed):
    whole = tiny.run_all(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"has no trained perceptual \(perceptual\.safetensors\)"):
        whole.fit("unet")
    with pytest.raises(ValueError, match=r"no trained classifier .*train it first"):
        load_trained(tiny.stage("classifier"), tmp_path)


def test_an_unfinished_stage_is_not_built_upon(tmp_path, monkeypatch):
    stage = tiny.stage("classifier")

    def fatal(path, shards):
        raise Killed

    monkeypatch.setattr(stage, "draw", fatal)
    stage.config = dataclasses.replace(stage.config, sample_every=3)
    with pytest.raises(Killed):
        run(stage, tmp_path, 0)
    with pytest.raises(ValueError, match=r"is at step 3 of 6: finish it first, with --resume"):
        load_trained(tiny.stage("classifier"), tmp_path)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, where):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match=r"cannot write into the folder .*file") as error:
        tiny.run_all(monkeypatch, tmp_path / where).fit("all")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"batch_size": -1}, {"shard_size": 0}, {"checkpoint_every": 0}],
)
def test_counts_below_one(options):
    with pytest.raises(ValueError, match=r"must be at least 1, not (0|-1)"):
        StageConfig(**{"steps": 5} | options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"text_encoder": "thawed"}, "'frozen' or 'joint', not 'thawed'"),
        ({"optimizer": "sgd"}, "'muon' or 'adamw', not 'sgd'"),
        ({"objective": "score"}, "unknown objective 'score': use one of edm"),
        ({"weighting": "none"}, "unknown weighting 'none': use one of target"),
    ],
)
def test_a_choice_that_is_none_is_refused_before_there_is_a_run(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        training.Run(tmp_path / "run", **options)


# A loss that is no number ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("what", ["gradient", "loss", "weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_turns_nan_stops_the_training(what, value, tmp_path, monkeypatch):
    """It says where, and the last good checkpoint stays."""
    stage = tiny.stage("classifier")
    gradients, after_step, calls = stage.gradients, stage.after_step, []

    def spoiled(step, shards, parameters):
        values = gradients(step, shards, parameters)
        calls.append(step)
        if step == 4 and what == "gradient":
            parameters[0].grad[(0,) * parameters[0].ndim] = value
        return [np.float32(value)] if step == 5 and what == "loss" else values

    def spoil_weights():
        after_step()
        if len(calls) == 6 and what == "weights":  # after everything logged was still fine
            stage.network.head.bias.data[0] = value

    monkeypatch.setattr(stage, "gradients", spoiled)
    monkeypatch.setattr(stage, "after_step", spoil_weights)
    message = r"^classifier: NaN or infinity by step 6 \(loss "
    with pytest.raises(ValueError, match=message) as error:
        run(stage, tmp_path, 0)
    assert "classifier.safetensors keeps the last good step" in str(error.value)
    arrays, metadata = checkpoint.load(file(tmp_path, "classifier"))
    assert metadata["step"] == 3
    assert all(np.isfinite(a).all() for a in arrays.values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_before_the_first_checkpoint(tmp_path, monkeypatch):
    stage = tiny.stage("classifier")
    stage.network.head.bias.data[0] = np.nan
    with pytest.raises(ValueError, match=r"by step 2 \(loss nan.*nothing was saved yet"):
        run(stage, tmp_path, 0)
    assert not list(tmp_path.iterdir())


# Pictures ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """stage -> what its picture shows: the arguments of `images.grid`."""
    grid, path = images.grid, tmp_path / "drawn.png"

    def draw(stage):
        shown = {}

        def record(*args, **options):
            shown.update(inspect.signature(grid).bind(*args, **options).arguments)
            return grid(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(images, "grid", record)
            stage.draw(path, Shards(8, 1))
        with Image.open(path) as picture:
            assert np.array_equal(picture, grid(**shown))
        return shown

    return draw


@pytest.mark.host
def test_a_classifier_shows_the_digits_that_it_misreads(drawn, tmp_path):
    stage = tiny.stage("classifier")
    pixels, labels = stage.test.pixels(slice(None)), stage.test.labels
    read = stage.network(pixels).data.argmax(axis=1)
    wrong = np.flatnonzero(read != labels)[:24]
    picture = drawn(stage)
    np.testing.assert_array_equal(picture["images"], pixels[wrong])
    assert picture["labels"] == [f"{labels[i]} as {read[i]}" for i in wrong]
    stage.test = dataclasses.replace(stage.test, labels=read)
    stage.draw(tmp_path / "none.png", Shards(8, 1))
    assert not (tmp_path / "none.png").exists()


@pytest.mark.host
def test_an_autoencoder_shows_digits_above_what_becomes_of_them(drawn):
    stage = tiny.stage("autoencoder")
    tiny.randomise(stage.network)
    picture = drawn(stage)
    above, below = picture["images"][:16], picture["images"][16:]
    assert picture["columns"] == 16
    np.testing.assert_array_equal(above, stage.test.pixels(slice(0, 16)))
    mean, _ = stage.network.encode(images.pad_to(above, 32))
    expected = images.crop_to(stage.network.decode(mean).data, 28)
    np.testing.assert_allclose(below, expected, atol=1e-5)


def test_clips_positives_are_the_pairs_that_say_the_same(monkeypatch):
    """A batch has a caption several times: each fits all their pictures."""
    stage, found = tiny.stage("clip", batch_size=20), []
    loss = training.clip.ops.contrastive_loss

    def told(image_features, text_features, scale, positives):
        found.append(to_host(positives))
        return loss(image_features, text_features, scale, positives)

    monkeypatch.setattr(training.clip.ops, "contrastive_loss", told)
    shards = Shards(None, 1)
    optimizer, _ = training.loop.prepare(stage, shards)
    stage.gradients(3, shards, optimizer.parameters)
    index = mnist.batch_indices(len(stage.train), 20, stage.seed, 3)
    texts = stage.train.captions(index, stage.seed, "clip", 3)
    same = [[a == b for a in texts] for b in texts]
    np.testing.assert_array_equal(found[0], same)
    assert 20 < np.sum(same) < 400


@pytest.mark.host
def test_clip_shows_digits_over_the_captions_that_fit_best(drawn):
    stage = tiny.stage("clip")
    picture = drawn(stage)
    assert picture["columns"] == 8 and len(picture["labels"]) == 24
    np.testing.assert_array_equal(picture["images"], stage.test.pixels(slice(0, 24)))
    texts = [captions.caption(*combination) for combination in captions.full_prompts()]
    seen = stage.network.encode_image(picture["images"]).data
    fits = seen @ stage.network.encode_text(stage.tokenizer(texts)).data.T
    chosen = fits[np.arange(24), [texts.index(label) for label in picture["labels"]]]
    np.testing.assert_allclose(chosen, fits.max(axis=1), atol=1e-5)
    assert len(set(picture["labels"])) > 1


@pytest.mark.host
@pytest.mark.parametrize("kind", ["unet-frozen", "pixel"])
def test_a_unet_shows_ten_digits_of_each_of_six_descriptions(kind, drawn, monkeypatch):
    stage = tiny.stage(kind)
    monkeypatch.setattr(stage.pipeline, "sample", lambda prompts, seed: prompts)
    monkeypatch.setattr(
        stage.pipeline,
        "decode",
        lambda prompts: np.stack([np.full((28, 28, 1), len(p) / 30 - 1) for p in prompts]),
    )
    picture = drawn(stage)
    assert picture["row_labels"] == [
        "a thin ... leaning left",
        "a thin ... leaning right",
        "a medium ... upright",
        "a bold ... leaning left",
        "a bold ... leaning right",
        "a ...",
    ]
    prompts = [
        label.replace("...", digit).replace("a eight", "an eight")
        for label in picture["row_labels"]
        for digit in captions.DIGITS
    ]
    found = (30 * (picture["images"][:, 0, 0, 0] + 1)).round().astype(int)
    assert found.tolist() == [len(prompt) for prompt in prompts] and picture["columns"] == 10


@pytest.mark.host
def test_a_noisy_classifier_shows_what_it_reads_under_more_and_more_noise(drawn):
    stage = tiny.stage("noisy")
    tiny.randomise(stage.network)
    clean = stage.posteriors[0][:10]
    noise = backend.generator(0, "noisy", "draw").standard_normal(clean.shape, np.float32)
    picture = drawn(stage)
    assert picture["columns"] == 10
    for row, sigma in enumerate(np.float32([0.25, 0.5, 1, 2, 4, 8])):
        x, ten = clean + sigma * noise, slice(10 * row, 10 * row + 10)
        read = stage.network(x, np.full(10, sigma)).data.argmax(axis=1)
        assert picture["labels"][ten] == [f"as {digit}" for digit in read]
        visible = stage.autoencoder.decode(x / (0.8 * np.sqrt(1 + sigma**2))).data
        np.testing.assert_allclose(picture["images"][ten], visible, atol=1e-4)


# The loop ----------------------------------------------------------------------------------


def test_the_progress_bar_tells_the_loss_beside_that_of_zero(tmp_path, capsys):
    run(tiny.stage("classifier"), tmp_path, 0, threads=1)
    shown = capsys.readouterr().err
    loss = rows(tmp_path, "classifier")[-1][1]
    assert f"loss {float(loss):.4g} (zero: 2.3)" in shown and "6/6" in shown


def test_the_loop_by_hand(tmp_path):
    """Clipping, schedule, decay, AdamW and the average, a parameter at a time in float64."""
    options = {"clip_norm": 0.5, "weight_decay": 0.3, "ema_decay": 0.3, "steps": 5, "warmup": 2}
    stage = tiny.stage("classifier", **options)
    parameters = stage.network.parameters()
    weights = [p.data.astype(np.float64) for p in parameters]
    average, m, v = [w.copy() for w in weights], [0.0] * len(weights), [0.0] * len(weights)
    factors = [0.5, 1, 1, 0.02 + 0.98 * 0.75, 0.02 + 0.98 * 0.25]  # cosine of 0, 60, 120 degrees
    clipped = 0
    for step, factor in enumerate(factors):
        for p, w in zip(parameters, weights):
            p.grad, p.data = None, w.astype(np.float32)
        stage.gradients(step, Shards(8, 1), parameters)
        norm = np.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
        clipped += norm > 0.5
        t, lr = step + 1, 2e-3 * factor
        d = min(0.3, (1 + t) / (10 + t))
        for i, p in enumerate(parameters):
            g = p.grad.astype(np.float64) * min(1, 0.5 / norm)
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.99 * v[i] + 0.01 * g * g
            step_size = (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.99**t)) + 1e-8)
            weights[i] = weights[i] - lr * (step_size + (p.ndim >= 2) * 0.3 * weights[i])
            average[i] = d * average[i] + (1 - d) * weights[i]
    assert clipped  # or clipping was never seen

    trained = tiny.stage("classifier", **options)
    run(trained, tmp_path, 0, threads=1)
    arrays, _ = checkpoint.load(file(tmp_path, "classifier"))
    for i, (name, p) in enumerate(trained.network.named_parameters()):
        saved = arrays[f"weights/classifier/{name}"]
        np.testing.assert_allclose(saved, weights[i], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(p.data, average[i], rtol=2e-4, atol=2e-5)
        np.testing.assert_array_equal(arrays[f"ema/classifier/{name}"], p.data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_log(kind, undisturbed):
    """A row every so often and at each checkpoint, with the value of answering zero beside."""
    folder, stage = undisturbed(kind)
    header, *lines = rows(folder, kind)
    zeros = [f"{name}_zero" for name in stage.report if name in stage.baselines]
    assert header == ["step", *stage.report, *zeros, "gradient_norm", "learning_rate"]
    assert [int(line[0]) for line in lines] == [2, 3, 4, 6]
    assert all(len(line) == len(header) for line in lines)
    table = np.array(lines, float)
    assert np.isfinite(table).all()
    for name in zeros:
        assert (table[:, header.index(name)] > 0).all()
    assert (table[:, header.index("gradient_norm")] > 0).all()
    rate = table[:, -1] / 2e-3
    # warm-up over 2 steps, then a cosine over 4 from step 2; floor 2%
    expected = [1, 1, 0.02 + 0.49 * (1 + np.cos(np.pi / 4)), 0.02 + 0.49 * (1 - np.sqrt(0.5))]
    np.testing.assert_allclose(rate, expected, rtol=1e-3)
    assert (folder / f"{stage.name}_000006.png").is_file()


@pytest.mark.parametrize("kind", ["autoencoder", "unet-frozen"])
def test_pictures_show_the_averaged_weights(kind, tmp_path, monkeypatch):
    """And the training goes on with its own."""
    stage, seen = tiny.stage(kind, steps=4, sample_every=2), []
    monkeypatch.setattr(stage, "draw", lambda path, shards: seen.append(stage.network.state_dict()))
    run(stage, tmp_path, 0)
    assert len(seen) == 2
    for name, array in stage.network.state_dict().items():  # the last averages stay
        np.testing.assert_array_equal(array, seen[-1][name])


# What is learned from ----------------------------------------------------------------------


class Batches:
    """In place of Shards: a stage draws its batch, and no network runs."""

    def __init__(self):
        self.loss = None

    def backward(self, loss, n, parameters):
        self.loss = loss
        return [np.float32(0)]

    def coupled_backward(self, towers, loss, n, parameters, coupled_parameters):
        self.loss = loss
        return np.float32(0)


def texts_of(stage, monkeypatch, steps):
    """The captions of each batch, as what encodes them is given them."""
    encoder = "conditions" if isinstance(stage, UNetStage) else "tokenizer"
    seen, encode = [], getattr(stage, encoder)

    def recording(texts):
        seen.append(list(texts))
        return encode(texts)

    monkeypatch.setattr(stage, encoder, recording)
    for step in range(steps):
        stage.gradients(step, Batches(), [])
    return seen


@pytest.mark.parametrize("kind", ["clip", "unet-frozen", "unet-joint"])
def test_held_out_combinations_never_occur(kind, monkeypatch):
    """Neither in a caption nor in an image, whatever its caption."""
    everything = tiny.digits("train")
    held_out = ~captions.allowed(everything.labels, everything.weights, everything.slants)
    assert held_out.sum() > 20  # the data do have them
    stage = tiny.stage(kind)
    combinations = set(zip(stage.train.labels, stage.train.weights, stage.train.slants))
    assert not combinations & set(captions.HELD_OUT)
    assert len(stage.train) == len(everything) - held_out.sum()
    texts = list(chain(*texts_of(stage, monkeypatch, 20)))
    assert len(texts) == 400
    parsed = [captions.parse(text) for text in texts]
    assert not set(parsed) & set(captions.HELD_OUT)
    assert sum(None not in attributes for attributes in parsed) > 150  # full captions were there


@pytest.mark.parametrize("kind", ["clip", "unet-frozen"])
def test_captions_belong_to_their_images(kind, monkeypatch):
    """Every attribute a caption names is its image's; from step to step captions change."""
    stage = tiny.stage(kind)
    data = stage.train
    batches = texts_of(stage, monkeypatch, 21)
    for step, texts in enumerate(batches):
        index = mnist.batch_indices(len(data), 20, 0, step)
        for i, text in zip(index, texts):
            if text:
                named = captions.parse(text)
                own = (data.labels[i], data.weights[i], data.slants[i])
                assert all(a is None or a == b for a, b in zip(named, own)), (text, own)
    # The second epoch says other things about the same images.
    first = dict(zip(mnist.batch_indices(len(data), 20, 0, 0), batches[0]))
    later = {}
    for step, texts in list(enumerate(batches))[-6:]:
        later |= dict(zip(mnist.batch_indices(len(data), 20, 0, step), texts))
    again = [(first[i], later[i]) for i in first.keys() & later.keys()]
    assert again and any(a != b for a, b in again)


def test_latents_belong_to_their_images():
    stage = tiny.stage("unet-frozen")
    pixels = stage.train.pixels(slice(100, 104))
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-1)
    mean, logvar = stage.pipeline.autoencoder.encode(padded)
    scale = stage.settings.latent_scale
    means, stds = stage.posteriors
    np.testing.assert_allclose(means[100:104], mean.data * scale, rtol=1e-4, atol=1e-5)
    std = np.exp(logvar.data / 2) * scale
    np.testing.assert_allclose(stds[100:104], std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate, low, high", [(0.1, 0.07, 0.13), (0.5, 0.45, 0.55), (0, 0, 0)])
def test_conditions_are_dropped_at_their_rate(rate, low, high, monkeypatch):
    """2,000 captions: a standard deviation is 0.0067 for a rate of 0.1, 0.011 for 0.5."""
    stage = tiny.stage("unet-frozen", drop_condition=rate)
    dropped = np.array([[t == "" for t in b] for b in texts_of(stage, monkeypatch, 100)])
    assert low <= dropped.mean() <= high
    if rate:
        assert len({row.tobytes() for row in dropped}) > 50  # others in every step


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_another_batch(kind, undisturbed):
    """The same step twice is the same loss; the next step, with equal weights, is another."""
    stage = tiny.stage(kind)
    shards = Shards(8, 1)
    parameters = [p for network in stage.networks.values() for p in network.parameters()]
    losses = [float(stage.gradients(step, shards, parameters)[0]) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_noise_levels_follow_their_distribution(monkeypatch):
    """ln(sigma) is normal with P_mean, P_std; noise and levels are drawn apart."""
    stage = tiny.stage("unet-frozen", P_mean=-0.5, P_std=0.7, batch_size=100)
    levels = []

    def record(D, x0, sigma, noise, cond, weighting):
        levels.append([to_host(a) for a in (sigma, noise, x0)])
        return Tensor(np.zeros(()))

    monkeypatch.setattr("ldm_numpy.training.unet.denoising_loss", record)

    class Whole(Batches):
        def backward(self, loss, n, parameters):
            return [loss(slice(0, n))[0].data]

    for step in range(20):
        stage.gradients(step, Whole(), [])
    logs = np.log(np.concatenate([sigma for sigma, _, _ in levels]))
    assert all((np.diff(sigma) > 0).all() for sigma, _, _ in levels)  # stratified in each batch,
    assert len({float(sigma[50]) for sigma, _, _ in levels}) == 20  # anew in each
    assert logs.mean() == pytest.approx(-0.5, abs=0.06)
    assert logs.std() == pytest.approx(0.7, abs=0.05)
    noise, clean = (np.concatenate([level[i] for level in levels]) for i in (1, 2))
    assert noise.std() == pytest.approx(1, abs=0.01)
    # Latents are drawn from their posteriors, not their means, with noise of their own.
    index = np.concatenate([mnist.batch_indices(len(stage.train), 100, 0, s) for s in range(20)])
    mean, std = stage.posteriors
    standard = (clean - mean[index]) / std[index]
    assert standard.std() == pytest.approx(1, abs=0.01)
    assert abs((standard * noise).mean()) < 0.02


def test_shifted_moves_each_image_on_paper(rng):
    pixels = np.full((60, 6, 5, 1), -1, np.float32)
    pixels[:, 3, 2] = 1
    moved = shifted(pixels, rng)
    assert moved.shape == pixels.shape and (moved == 1).sum() == 60 and (moved >= -1).all()
    places = {tuple(np.argwhere(one[..., 0] == 1)[0] - (3, 2)) for one in moved}
    assert {abs(y) for y, _ in places} == {abs(x) for _, x in places} == {0, 1, 2}
    assert min(min(p) for p in places) == -2 and max(max(p) for p in places) == 2


# Text encoder, latent scale ----------------------------------------------------------------


def test_frozen_is_unchanged_and_joint_is_not(undisturbed):
    start = tiny.stage("unet-frozen").text_encoder.state_dict()
    for kind in ("unet-frozen", "unet-joint"):
        folder, stage = undisturbed(kind)
        state = stage.text_encoder.state_dict()
        same = {key for key, array in state.items() if (array == start[key]).all()}
        assert same == (set(start) if kind == "unet-frozen" else set())
        arrays, _ = checkpoint.load(file(folder, kind))
        stored = any("/text_encoder/" in key for key in arrays)
        assert stored == (kind == "unet-joint")
        assert stage.pipeline.text_encoder is stage.text_encoder  # pictures use the same
    frozen, joint = (undisturbed(kind)[1] for kind in ("unet-frozen", "unet-joint"))
    assert frozen.conditions(["seven"]).shape == (1, 12, 16)
    assert (joint.conditions(["seven"]) == joint.tokenizer(["seven"])).all()


def test_a_frozen_text_encoder_is_asked_once_a_caption(monkeypatch):
    stage = tiny.stage("unet-frozen")
    asked = []
    tokenizer = stage.tokenizer
    monkeypatch.setattr(stage, "tokenizer", lambda texts: asked.append(texts) or tokenizer(texts))
    states = stage.conditions(["seven", "a thin 3", "seven"])
    assert asked == [["seven"], ["a thin 3"]]
    assert (stage.conditions(["seven"])[0] == states[2]).all() and len(asked) == 2
    expected = stage.text_encoder(tokenizer(["seven", "a thin 3", "seven"])).data
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-5)


def test_the_latent_scale_gives_unit_deviation():
    """Of what the U-Net sees: draws from the posteriors, around a mean that is not zero."""
    stage = tiny.stage("autoencoder")
    channels = tiny.AUTOENCODER.latent_channels
    stage.network.quant_conv.weight.data[..., :channels] *= 20
    stage.network.quant_conv.bias.data[:channels] = 3.0
    scale = stage.measure(Shards(32))["latent_scale"]
    assert json.loads(json.dumps(scale)) == scale
    settings = dataclasses.replace(tiny.SETTINGS, latent_scale=scale)
    unet = tiny.stage("unet-frozen")
    text = (unet.text_encoder, unet.tokenizer)
    trained = UNetStage(tiny.UNET, unet.config, settings, stage.network, *text, stage.train, 0)
    mean, std = trained.posteriors
    latents = mean + std * backend.generator(0, "test").standard_normal(mean.shape)
    assert abs(latents.mean()) > 0.5  # a scale from the second moment would be far off
    assert latents.std() == pytest.approx(1, abs=0.03)


def test_the_perceptual_classifier_stays_as_it_is(undisturbed):
    """No gradient of it is even computed."""
    _, stage = undisturbed("autoencoder")
    assert not any(p.requires_grad for p in stage.perceptual.parameters())
    fresh = tiny.stage("autoencoder").perceptual.state_dict()
    for key, array in stage.perceptual.state_dict().items():
        np.testing.assert_array_equal(array, fresh[key])


def test_the_temperature_is_bounded():
    """Radford et al. 2021: similarities are multiplied by at most 100."""
    stage = tiny.stage("clip")
    for value, expected in ((9.0, np.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        stage.network.logit_scale.data[...] = value
        stage.after_step()
        assert float(stage.network.logit_scale.data) == pytest.approx(expected)


# A whole run -------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path, monkeypatch):
    return tiny.run_all(monkeypatch, tmp_path / "new" / "run", text_encoder="joint")


@pytest.mark.parametrize("text_encoder", ["frozen", "joint"])
def test_a_run_ends_with_a_model_folder(text_encoder, tmp_path, monkeypatch):
    """It draws what the trained networks draw with their weights rounded to float16."""
    whole = tiny.run_all(monkeypatch, tmp_path / "new" / "run", text_encoder=text_encoder)
    whole.fit("all")
    for name in ("perceptual", "reader", *training.STAGES):
        assert (whole.folder / f"{name}.safetensors").is_file()
        assert (whole.folder / f"{name}.csv").is_file()
    loaded = model_folder.load(whole.folder, whole.device, threads=1)
    assert loaded.config.latent_scale != 1

    stage = whole.unet()
    load_trained(stage, whole.folder)
    prompts = ["a thin 3", "a bold seven leaning left", ""]
    exact = stage.pipeline.sample(prompts, seed=4)
    for network in (stage.network, stage.text_encoder, stage.pipeline.autoencoder):
        network.load_state_dict(
            {key: a.astype(np.float16) for key, a in network.state_dict().items()}
        )
    expected = stage.pipeline.sample(prompts, seed=4)
    assert not (exact == expected).all()  # the weights can be seen in the samples
    samples = loaded.sample(prompts, seed=4, num_inference_steps=3)
    np.testing.assert_allclose(samples, expected, atol=1e-6)  # not 1e-3, as float16's rounding
    decoded = stage.pipeline.decode(expected)
    np.testing.assert_allclose(loaded.decode(samples), decoded, atol=1e-5)
    config = model_folder.read_config(whole.folder / "model")
    clip = model_folder.load_network(whole.folder / "model", config, "clip")
    own = clip.text_model.state_dict()
    same = [(own[k] == a).all() for k, a in loaded.text_encoder.state_dict().items()]
    assert all(same) == (text_encoder == "frozen")

    trained, _ = checkpoint.load(whole.folder / "perceptual.safetensors")
    judge = whole.autoencoder().perceptual.state_dict()  # as training left it
    assert all((trained[f"ema/classifier/{name}"] == a).all() for name, a in judge.items())

    before = {path.name: path.read_bytes() for path in whole.folder.glob("*.safetensors")}
    with pytest.raises(ValueError, match=r"holds a training already \(perceptual, reader"):
        whole.fit("all")
    with pytest.raises(ValueError, match=r"holds a training already \(clip\)"):
        whole.fit("clip")
    whole.fit("all", resume=True)  # nothing is left to do
    assert before == {path.name: path.read_bytes() for path in whole.folder.glob("*.safetensors")}


def test_a_stage_goes_on_upon_what_it_was_begun(whole):
    """An autoencoder, or a CLIP, trained anew makes latents and words mean something else."""
    whole.fit("all")
    before = (whole.folder / "unet.safetensors").read_bytes()
    for earlier in ("autoencoder", "clip"):
        path = whole.folder / f"{earlier}.safetensors"
        usual = path.read_bytes()
        arrays, metadata = checkpoint.load(path)
        checkpoint.save(path, {k: a + a.dtype.type(1) for k, a in arrays.items()}, metadata)
        words = rf"made with other options: upstream\.{earlier}\.safetensors was .* is now"
        with pytest.raises(ValueError, match=words):
            whole.fit("unet", resume=True)
        path.write_bytes(usual)
    assert (whole.folder / "unet.safetensors").read_bytes() == before
    whole.fit("unet", resume=True)


@pytest.mark.host
def test_a_run_that_was_killed_goes_on(whole, tmp_path, monkeypatch):
    """`--resume` skips the finished stages and ends like a run never killed."""
    # Drawing takes long.
    monkeypatch.setattr(training.UNetStage, "draw", lambda self, path, shards: None)

    def fatal(self):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.UNetStage, "after_step", fatal)
        whole.fit("all")
    assert not (whole.folder / "model").exists()
    whole.fit("all", resume=True)
    other = tiny.run_all(monkeypatch, tmp_path / "other", text_encoder="joint")
    other.fit("all")
    for path in (other.folder / "model").iterdir():
        assert path.read_bytes() == (whole.folder / "model" / path.name).read_bytes()


def test_data_that_cannot_be_read_are_refused_before_any_work(tmp_path):
    """Those of testing too: no tokenizer is learned from the others before they are missed."""
    few, images_name, labels_name = 20, *mnist.FILES["train"]
    pixels, labels = (part[:few] for part in mnist.load("test"))
    data, out = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    (data / images_name).write_bytes(struct.pack(">4I", 2051, few, 28, 28) + pixels.tobytes())
    (data / labels_name).write_bytes(struct.pack(">2I", 2049, few) + labels.tobytes())
    with pytest.raises(ValueError, match="data has no file t10k-images-idx3-ubyte"):
        training.Run(out, data=data, threads=1).fit("clip")
    assert list(out.iterdir()) == []


def test_an_unfinished_run_is_not_exported(whole, tmp_path):
    with pytest.raises(ValueError, match="is not the folder of a run"):
        training.export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="holds a run's checkpoints: name another folder"):
        training.export(tmp_path, tmp_path / "beside" / "..")
    whole.fit("clip")
    with pytest.raises(ValueError, match="has no trained unet"):
        training.export(whole.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_reads_the_digits_of_its_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training.Digits, "load", lambda split, data: asked.append((split, data)))
    of_folder = training.Run(tmp_path, data="some/folder", threads=1)
    assert of_folder.train is of_folder.test is None
    assert asked == [("train", "some/folder"), ("test", "some/folder")]


def test_digits_are_those_of_a_part_and_a_folder(monkeypatch):
    few = mnist.load("test")
    few = few[0][:20], few[1][:20]
    asked = []
    monkeypatch.setattr(mnist, "load", lambda *arguments: asked.append(arguments) or few)
    digits = training.Digits.load("train", "some/folder")
    assert asked == [("train", "some/folder")] and len(digits) == 20
    np.testing.assert_array_equal(digits.labels, few[1])


def test_the_steps_asked_for(whole):
    training.prepare_folder(whole.folder)
    stages = training.Run(whole.folder, steps={"clip": 2}, threads=1)
    assert stages.clip().config.steps == 2 and stages.classifier("reader").config.steps == 6
    reader, perceptual = stages.classifier("reader"), stages.classifier("perceptual")
    assert (perceptual.seed, reader.seed) == (0, training.READER_SEED)  # nothing in common


# Other objectives --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "pixel"])
def test_an_objective_goes_from_the_run_to_the_model(kind, tmp_path, monkeypatch):
    """What is trained for it says so, and is sampled as that."""
    run = tiny.run_all(monkeypatch, tmp_path, objective="v", weighting="min_snr")
    for name in ("autoencoder", "clip", kind):
        run.fit(name)
    stage = run.build(kind)
    if kind == "pixel":
        _, deviation = training.pixel_moments(stage.train)
        assert stage.pipeline.config.latent_scale == pytest.approx(1 / deviation, rel=0.01)
    assert stage.denoiser.objective == stage.pipeline.denoiser.objective == "v"
    assert stage.describe()["pipeline"]["objective"] == stage.describe()["objective"] == "v"
    pipe = model_folder.load(tmp_path / training.MODELS[kind])
    assert pipe.config.objective == pipe.denoiser.objective == "v"
    prompts = {"num_inference_steps": 4, "sampler": "euler"}
    latents = pipe.sample(["3"], **prompts)
    pipe.denoiser.objective = "edm"
    assert np.abs(latents - pipe.sample(["3"], **prompts)).max() > 1e-3


@pytest.mark.parametrize("objective", ["edm", "epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("weighting", ["target", "likelihood", "min_snr"])
def test_the_logged_loss_of_zero_is_one_where_it_is_logged(objective, weighting):
    stage = tiny.stage("unet-frozen", objective=objective, weighting=weighting, batch_size=200)
    usual = (objective, weighting) == ("edm", "target")
    assert stage.baselines == ({"loss": 1.0} if usual else {})
    if usual:  # white data, and a network whose last layer is still zero
        stage.posteriors = tuple(np.full((400, 8, 8, 4), v, np.float32) for v in (0, 1))
        values = stage.gradients(0, Shards(50, 1), list(stage.network.parameters()))
        assert float(values[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.host
def test_each_row_of_a_shard_has_its_own_caption(monkeypatch):
    """What D is given beside row i of the batch are the token states of caption i."""
    stage = tiny.stage("unet-frozen")
    texts = texts_of(stage, monkeypatch, 1)[0]
    seen = {}

    def record(D, x0, sigma, noise, cond, weighting):
        seen.update({float(s): states for s, states in zip(sigma, cond)})
        return Tensor(np.zeros((), np.float32), requires_grad=True)

    monkeypatch.setattr("ldm_numpy.training.unet.denoising_loss", record)

    class Slices:
        def backward(self, loss, n, parameters):
            return [loss(slice(i, min(i + 8, n)))[0].data for i in range(0, n, 8)]

    stage.gradients(0, Slices(), [])
    for text, states in zip(texts, (seen[s] for s in sorted(seen))):  # levels rise in a batch
        np.testing.assert_array_equal(states, stage.conditions([text])[0])


def test_what_is_measured_is_measured_on_the_averaged_weights(tmp_path, monkeypatch):
    """For they are what is used with it later: the latents' scale, of an autoencoder."""
    stage, shards = tiny.stage("autoencoder"), Shards(32)
    optimizer, ema = loop.prepare(stage, shards)
    optimizer.weights += 1  # away from their average
    seen = []
    record = lambda shards: seen.append(loop.weights_of(stage, "ema")) or {}  # noqa: E731
    monkeypatch.setattr(stage, "measure", record)
    loop.save_checkpoint(stage, optimizer, ema, tmp_path / "a.safetensors", 0, 1, shards)
    arrays, _ = checkpoint.load(tmp_path / "a.safetensors")
    for name, measured_on in seen[0].items():
        np.testing.assert_array_equal(measured_on, arrays[name])
        assert (arrays[name] != arrays[name.replace("ema", "weights", 1)]).any()
