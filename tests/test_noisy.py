"""The classifier of noised latents, and guidance by it."""

import numpy as np
import pytest
from scipy.special import log_softmax

from ldm_numpy import images, model_folder
from ldm_numpy.backend import array_module, to_host
from ldm_numpy.data import mnist
from ldm_numpy.editing import classifier_guided
from ldm_numpy.gradcheck import vjp_errors
from ldm_numpy.models.classifier import NoisyClassifier
from ldm_numpy.parallel import Shards
from ldm_numpy.tensor import Tensor
from ldm_numpy.training import noisy
from ldm_numpy.training.autoencoder import encode_moments

from . import tiny


@pytest.fixture(scope="module")
def classifier():
    return tiny.randomise(NoisyClassifier(tiny.NOISY))


def test_log_probabilities_are_those_of_the_logits(classifier, rng):
    x, sigma = rng.standard_normal((5, 8, 8, 4)), np.linspace(0.1, 3, 5)
    classes = np.array([3, 1, 4, 1, 5])
    found = classifier.log_probability(Tensor(x), sigma, classes).data
    logits = classifier(x, sigma).data
    assert found == pytest.approx(log_softmax(logits, axis=1)[np.arange(5), classes])
    same = classifier.log_probability(Tensor(x), 0.7, classes).data  # one level for all
    each = classifier.log_probability(Tensor(x), np.full(5, 0.7), classes).data
    assert np.array_equal(same, each)


def test_the_gradient_in_x(classifier):
    sigma, classes = np.array([0.3, 2.0]), np.array([7, 0])
    function = lambda x: classifier.log_probability(x, sigma, classes)  # noqa: E731
    x = np.random.default_rng(1).standard_normal((2, 8, 8, 4))
    assert max(vjp_errors(function, [x], np.random.default_rng(2))) < 1e-6


# Guidance ----------------------------------------------------------------------------------


class Nearest:
    """In a classifier's place: each digit's latent is one point, and noise is white."""

    config = tiny.NOISY

    def __init__(self, points):
        self.points = points  # (10, h, w, C)

    def log_probability(self, x, sigma, classes):
        points = array_module(x.data).asarray(self.points[classes])
        squares = ((x - points) ** 2).reshape(len(classes), -1).sum(axis=1)
        return squares * (-0.5 / (sigma**2 + 1))


def test_samples_go_where_the_classifier_sees_what_is_wanted(monkeypatch):
    pipe = tiny.text_to_image()
    points = 3 * np.random.default_rng(0).standard_normal((10, 8, 8, 4)).astype(np.float32)

    def distance(scale):
        found = []
        monkeypatch.setattr(pipe, "decode", lambda x: found.append(x) or np.zeros((1, 1, 1, 1)))
        options = {"classifier_scale": scale, "sampler": "euler", "num_inference_steps": 30}
        classifier_guided(pipe, Nearest(points), range(10), **options)
        return np.abs(to_host(found[0]) - points).mean()

    away, without, some, more = (distance(scale) for scale in (-0.3, 0.0, 0.3, 1.0))
    assert more < some < without < away


def test_scale_zero_is_the_model_without_a_prompt():
    pipe = tiny.text_to_image()
    classifier = tiny.randomise(NoisyClassifier(tiny.NOISY))
    options = {"sampler": "euler", "num_inference_steps": 4, "seed": 5}
    drawn = classifier_guided(pipe, classifier, [1, 2], classifier_scale=0.0, **options)
    plain = pipe(["", ""], guidance_scale=1.0, **options)
    assert np.array_equal(images.from_pil(drawn), images.from_pil(plain))


@pytest.mark.parametrize("classes", [[10], [-1], [1.5], [], 3, [[1]]])
def test_classes_that_are_none(classes, classifier):
    with pytest.raises(ValueError, match=r"whole numbers 0 \.\.\. 9"):
        classifier_guided(tiny.text_to_image(), classifier, classes)


def test_it_is_trained_and_exported_with_a_run(tmp_path, monkeypatch):
    run = tiny.run_all(monkeypatch, tmp_path)
    for name in ("autoencoder", "noisy", "clip", "unet"):
        run.fit(name)
    folder = tmp_path / "model"
    network = model_folder.load_network(
        folder, model_folder.read_config(folder), "noisy_classifier"
    )
    assert isinstance(network, NoisyClassifier)
    assert run.build("noisy").upstream.keys() == {"autoencoder.safetensors"}
    drawn = classifier_guided(model_folder.load(folder), network, [1, 2])
    assert [d.size for d in drawn] == [(28, 28)] * 2


def test_an_unfinished_classifier_is_left_out_and_a_later_one_put_in(tmp_path, monkeypatch):
    run = tiny.run_all(monkeypatch, tmp_path)
    run.fit("autoencoder")
    checkpoint = tmp_path / "noisy.safetensors"
    checkpoint.write_bytes(b"half a file")
    run.fit("clip")
    with pytest.warns(UserWarning, match="without its noisy classifier"):
        run.fit("unet")
    folder = tmp_path / "model"
    assert "noisy_classifier" not in model_folder.read_config(folder)
    (folder / "metrics.json").write_text("{}")
    checkpoint.unlink()
    run.fit("noisy")
    config = model_folder.read_config(folder)
    assert isinstance(
        model_folder.load_network(folder, config, "noisy_classifier"), NoisyClassifier
    )
    assert (folder / "metrics.json").read_text() == "{}"  # of the other networks, as before


def test_training_shows_noised_latents_of_its_digits(monkeypatch):
    """x = scale (mean + std z) + sigma n, and the digits' own labels: told by the least noise and
    by the mean over many draws."""
    stage = tiny.stage("noisy", P_mean=-4.0, P_std=0.5, batch_size=50)
    labels, xs = [], []
    stage.network = lambda x, sigma: xs.append(to_host(x)) or Tensor(np.zeros((len(x), 10)))

    def record(logits, labels_of):
        labels.append(labels_of)
        return Tensor(np.zeros(()))

    monkeypatch.setattr("ldm_numpy.training.noisy.ops.softmax_cross_entropy", record)
    own = encode_moments(stage.autoencoder, stage.train.images, 32, Shards(64, 1), stage.device)
    mean, std = (0.8 * part for part in own)  # as tiny.stage has it
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip((mean, std), stage.posteriors))
    errors = []
    for step in range(30):
        stage.gradients(step, Whole(), [])
        index = mnist.batch_indices(len(stage.train), 50, 0, step)
        assert np.array_equal(labels[-1], stage.train.labels[index])
        errors.append((xs[-1] - mean[index]) / std[index])
    z = np.stack(errors)
    assert z.std() == pytest.approx(1, abs=0.02) and abs(z.mean()) < 0.02
    correlation = np.corrcoef(z.reshape(30, -1)) - np.eye(30)
    assert np.abs(correlation).max() < 0.1


class Whole:
    """In the place of shards: the loss of the whole batch, and no gradient."""

    def backward(self, loss, n, parameters):
        return [loss(slice(0, n))[0].data]


def test_training_draws_every_level_and_fresh_noise():
    stage = tiny.stage("noisy", P_mean=0.2, P_std=0.9, batch_size=100)
    seen = []
    stage.network = lambda *given: (
        seen.append([to_host(a) for a in given]) or Tensor(np.zeros((len(given[0]), 10)))
    )
    for step in range(10):
        stage.gradients(step, Whole(), [])
    logs = np.log(np.concatenate([sigma for _, sigma in seen]))
    assert logs.mean() == pytest.approx(0.2, abs=0.05)
    assert logs.std() == pytest.approx(0.9, abs=0.05)
    loud = np.concatenate([x[sigma > 3] / sigma[sigma > 3, None, None, None] for x, sigma in seen])
    assert loud.std() == pytest.approx(1, abs=0.05)
    assert len(stage.train) == len(tiny.digits("train"))


@pytest.mark.parametrize(("device", "size"), [("cpu", 64), ("gpu", None)])
def test_its_digits_are_encoded_a_few_at_a_time_by_the_threads_asked_for(device, size, monkeypatch):
    """On a processor, where all of them at once would fill the memory."""
    asked = []

    def encoded(autoencoder, images, side, shards, device, scale):
        asked.append((shards.size, shards.threads))
        return images, images

    monkeypatch.setattr(noisy, "encode_moments", encoded)
    stage = tiny.stage("noisy")
    stage.device, stage.threads = device, 3
    assert stage.posteriors[0] is stage.train.images and asked == [(size, 3)]
