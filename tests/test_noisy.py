"""The classifier of noised latents, and guidance by it."""

import numpy as np
import pytest
from scipy.special import log_softmax

from ldm_numpy import images, model_folder
from ldm_numpy.editing import classifier_guided
from ldm_numpy.gradcheck import vjp_errors
from ldm_numpy.models.classifier import NoisyClassifier
from ldm_numpy.tensor import Tensor

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


def test_logits_of_any_size(classifier):
    x = np.full((1, 8, 8, 4), 1e4, np.float32)
    found = classifier.log_probability(Tensor(x), 1e-3, np.array([2])).data
    assert np.isfinite(found).all() and (found <= 0).all()


def test_noise_is_scaled_away_and_its_level_is_seen(classifier, rng):
    """c_in x is what counts, and beside it the level."""
    x, sigma = rng.standard_normal((2, 8, 8, 4)), np.array([0.5, 0.5])
    first = classifier(x, sigma).data
    other = classifier(x * np.sqrt(10 / 1.25), np.array([3.0, 3.0])).data
    assert np.abs(first - other).max() > 1e-3  # the same x after scaling, another level


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
        squares = ((x - self.points[classes]) ** 2).reshape(len(classes), -1).sum(axis=1)
        return squares * (-0.5 / (sigma**2 + 1))


def test_samples_go_where_the_classifier_sees_what_is_wanted(monkeypatch):
    pipe = tiny.text_to_image()
    points = 3 * np.random.default_rng(0).standard_normal((10, 8, 8, 4)).astype(np.float32)

    def distance(scale):
        found = []
        monkeypatch.setattr(pipe, "decode", lambda x: found.append(x) or np.zeros((1, 1, 1, 1)))
        options = {"classifier_scale": scale, "sampler": "euler", "num_inference_steps": 30}
        classifier_guided(pipe, Nearest(points), range(10), **options)
        return np.abs(found[0] - points).mean()

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


def test_training_draws_every_level_and_fresh_noise():
    stage = tiny.stage("noisy", P_mean=0.2, P_std=0.9, batch_size=100)
    stage.before_steps()
    seen = []
    stage.network = lambda x, sigma: seen.append((x, sigma)) or Tensor(np.zeros((len(x), 10)))

    class Whole:
        def backward(self, loss, n, parameters):
            return [loss(slice(0, n))[0].data]

    for step in range(10):
        stage.gradients(step, Whole(), [])
    logs = np.log(np.concatenate([sigma for _, sigma in seen]))
    assert logs.mean() == pytest.approx(0.2, abs=0.05)
    assert logs.std() == pytest.approx(0.9, abs=0.05)
    loud = np.concatenate([x[sigma > 3] / sigma[sigma > 3, None, None, None] for x, sigma in seen])
    assert loud.std() == pytest.approx(1, abs=0.05)
    assert len(stage.train) == len(tiny.digits("train"))
