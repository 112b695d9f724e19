"""Metrics against closed forms and counted cases."""

import math

import numpy as np
import pytest
import scipy.linalg

from ldm_numpy import metrics
from ldm_numpy.metrics import (
    bootstrap_interval,
    clip_score,
    frechet_distance,
    frechet_floor,
    kernel_distance,
    nearest,
    precision_recall,
    prompt_accuracy,
    zero_shot_accuracy,
)


def with_moments(mean, covariance, n: int, seed: int) -> np.ndarray:
    """n points whose sample mean and covariance are exactly as given."""
    z = np.random.default_rng(seed).standard_normal((n, len(mean)))
    z -= z.mean(0)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z.T)), z.T).T
    return mean + z @ np.linalg.cholesky(covariance).T


def covariance(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d))
    return a @ a.T + 0.1 * np.eye(d)


def test_frechet_distance_is_the_formula():
    a_mean, b_mean = np.random.default_rng(0).standard_normal((2, 6))
    a, b = covariance(6, 1), covariance(6, 2)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = np.sum((a_mean - b_mean) ** 2) + np.trace(a + b - 2 * root)
    x, y = with_moments(a_mean, a, 50, 3), with_moments(b_mean, b, 80, 4)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_independent_axes():
    """Diagonal covariances: sum of (m_a - m_b)^2 + (s_a - s_b)^2."""
    x = with_moments(np.array([0.0, 1.0]), np.diag([4.0, 9.0]), 30, 0)
    y = with_moments(np.array([3.0, 1.0]), np.diag([1.0, 25.0]), 40, 1)
    assert frechet_distance(x, y) == pytest.approx(9 + 1 + 4, rel=1e-10)


def test_frechet_distance_does_not_mind_degenerate_features():
    """A dead feature, a copied one, fewer samples than dimensions, large offsets."""
    x = np.random.default_rng(5).standard_normal((200, 4))
    wide = np.concatenate([x, x[:, :1], np.zeros((200, 1))], axis=1)
    assert frechet_distance(wide, wide) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(wide + 1e4, wide + 1e4) == pytest.approx(0, abs=1e-7)
    assert frechet_distance(wide, wide + 2) == pytest.approx(4 * 6, rel=1e-9)
    assert frechet_distance(wide, -wide) == pytest.approx(4 * np.sum(wide.mean(0) ** 2), rel=1e-9)
    few = np.random.default_rng(6).standard_normal((3, 50))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, 2 * few) == pytest.approx(  # the same, twice as large
        np.sum(few.mean(0) ** 2) + np.sum(few.var(0, ddof=1)), rel=1e-9
    )


def test_frechet_distance_takes_float32():
    x = np.random.default_rng(7).standard_normal((2, 500, 8)).astype(np.float32)
    expected = frechet_distance(*x.astype(np.float64))
    assert frechet_distance(*x) == pytest.approx(expected, rel=1e-12)


def test_floor_is_the_mean_over_random_splits():
    features = np.random.default_rng(8).standard_normal((300, 5))
    features[:150] += 10  # in order, the first hundred are unlike the rest
    floor = frechet_floor(features, 100, 5, np.random.default_rng(9))
    assert 0 < floor < 2 < frechet_distance(features[:100], features[100:])
    assert floor == frechet_floor(features, 100, 5, np.random.default_rng(9))
    rng = np.random.default_rng(9)
    orders = [rng.permutation(300) for _ in range(5)]
    by_hand = [frechet_distance(features[o[:100]], features[o[100:]]) for o in orders]
    assert floor == pytest.approx(np.mean(by_hand))


def test_prompt_accuracy_counts():
    wanted = np.array([[7, 0, 2], [7, 0, 2], [3, 1, 1], [3, 1, 1], [5, 2, 0]]).T
    measured = np.array([[7, 0, 2], [7, 0, 1], [3, 2, 1], [8, 1, 1], [5, 2, 0]]).T
    assert prompt_accuracy(measured, wanted, held_out=[(7, 0, 2), (0, 0, 0)]) == {
        "digit": pytest.approx(4 / 5),
        "slant": pytest.approx(4 / 5),
        "stroke": pytest.approx(4 / 5),
        "all": pytest.approx(2 / 5),
        "held_out": pytest.approx(1 / 2),
        "rest": pytest.approx(1 / 3),
    }
    only_slant_wrong = prompt_accuracy(wanted + np.array([[0], [0], [1]]), wanted)
    assert (only_slant_wrong["slant"], only_slant_wrong["stroke"]) == (0, 1)
    assert "held_out" not in only_slant_wrong and only_slant_wrong["rest"] == 0


def test_clip_score_by_hand():
    images = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    texts = np.array([[1.0, 0.0], [1.0, 1.0], [-5.0, 0.0]])  # cosines 1, sqrt(1/2), -1
    assert clip_score(images, texts) == pytest.approx(2.5 * (1 + math.sqrt(0.5) + 0) / 3)


def test_zero_shot_takes_the_nearest_direction():
    captions = np.array([[1.0, 0.0], [0.0, 100.0], [-1.0, -1.0]])  # length must not win
    images = np.array([[5.0, 1.0], [0.1, 1.0], [-1.0, -2.0], [3.0, 1.0]])
    assert zero_shot_accuracy(images, captions, np.array([0, 1, 2, 1])) == 3 / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x, x[:, :2]), "widths"),
        (lambda x: frechet_distance(x[:1], x), "n >= 2"),
        (lambda x: frechet_distance(x * math.nan, x), "finite"),
        (lambda x: frechet_floor(x, 5, 1, np.random.default_rng(0)), "against"),
        (lambda x: frechet_floor(x, 2, 0, np.random.default_rng(0)), "shuffles"),
        (lambda x: prompt_accuracy(x.T, x[:2].T), "wanted"),
        (lambda x: prompt_accuracy(x[:0].T, x[:0].T), "wanted"),
        (lambda x: clip_score(x, x[:2]), "pairs"),
        (lambda x: clip_score(x[:0], x[:0]), "N >= 1"),
        (lambda x: clip_score(0 * x, x), "length zero"),
        (lambda x: zero_shot_accuracy(x, x, np.zeros(2, int)), "labels"),
        (lambda x: zero_shot_accuracy(x, x, np.full(6, 99)), "labels must be rows"),
        (lambda x: clip_score(x, x + math.inf), "not finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    x = np.random.default_rng(10).standard_normal((6, 3))
    with pytest.raises(ValueError, match=message):
        call(x)


def test_kernel_distance_is_the_sum_over_pairs():
    rng = np.random.default_rng(20)
    a, b = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)) + 1

    def k(x, y):
        return (np.dot(x, y) / 3 + 1) ** 3

    within_a = [k(a[i], a[j]) for i in range(5) for j in range(5) if i != j]
    within_b = [k(b[i], b[j]) for i in range(4) for j in range(4) if i != j]
    across = [k(x, y) for x in a for y in b]
    expected = np.mean(within_a) + np.mean(within_b) - 2 * np.mean(across)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased():
    """0 on the average for one distribution, even of 10 samples; and for two Gaussians in one
    dimension, where k = (x y + 1)^3, the moments' formula: both within 4.5 standard errors."""
    rng, repeats = np.random.default_rng(21), 4000
    same = [kernel_distance(*rng.standard_normal((2, 10, 4))) for _ in range(repeats)]
    assert abs(np.mean(same)) < 4.5 * np.std(same) / math.sqrt(repeats)
    assert 0.3 < np.mean(np.array(same) < 0) < 0.8
    # E k = E[x^3]E[y^3] + 3 E[x^2]E[y^2] + 3 E[x]E[y] + 1, so the distance is that of the moments.
    moments_a, moments_b = np.array([0, 1, 0]), np.array([0.5, 1.25, 0.5**3 + 3 * 0.5])
    expected = np.array([3, 3, 1]) @ (moments_a - moments_b) ** 2
    found = [
        kernel_distance(rng.standard_normal((15, 1)), 0.5 + rng.standard_normal((15, 1)))
        for _ in range(repeats)
    ]
    assert abs(np.mean(found) - expected) < 4.5 * np.std(found) / math.sqrt(repeats)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_the_interval_covers_what_other_samples_give(distance):
    """Of 200 pairs of samples about 95% have a distance in the interval that one bootstrap says,
    centred on their mean."""
    rng = np.random.default_rng(22)

    def pair():
        return rng.standard_normal((100, 3)), 0.5 + rng.standard_normal((120, 3))

    a, b = pair()
    low, high = bootstrap_interval(distance, a, b, 200, rng)
    assert (low + high) / 2 == pytest.approx(distance(a, b))
    others = np.array([distance(*pair()) for _ in range(200)])
    covered = np.abs(others - others.mean()) < (high - low) / 2
    assert 0.85 < covered.mean() <= 1
    narrow = bootstrap_interval(distance, a, b, 200, np.random.default_rng(0), level=0.5)
    wide = bootstrap_interval(distance, a, b, 200, np.random.default_rng(0), level=0.95)
    assert np.ptp(wide) / np.ptp(narrow) == pytest.approx(1.95996 / 0.67449, rel=1e-4)


def test_an_interval_of_two_repetitions():
    """Their deviation is |first - second| / sqrt(2), and 1.96 of them lie on each side."""
    rng, found = np.random.default_rng(24), []

    def distance(a, b):
        found.append(a.mean() - b.mean())
        return found[-1]

    low, high = bootstrap_interval(distance, rng.random((9, 1)), rng.random((7, 1)), 2, rng)
    first, second, estimate = found
    reach = 1.95996398 * abs(first - second) / 2**0.5
    np.testing.assert_allclose([low, high], [estimate - reach, estimate + reach])


def test_precision_and_recall():
    """Samples of one half of a square: all of them are real, and half of the real is there."""
    rng = np.random.default_rng(23)
    real, generated = rng.random((2000, 2)), rng.random((2000, 2)) * [0.5, 1]
    precision, recall = precision_recall(real, generated)
    assert precision > 0.97 and recall == pytest.approx(0.5, abs=0.06)
    recall_of, precision_of = precision_recall(generated, real)
    assert (precision_of, recall_of) == (precision, recall)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, generated + 5) == (0, 0)
    twins = np.repeat(real[:500], 2, axis=0)  # radius 0 for k = 1: its own points count
    assert precision_recall(twins, twins, k=1) == (1, 1)


def test_balls_reach_to_the_kth_neighbour():
    """Around 0, 1, 3, 7 to distances 1, 1, 2, 4 (all of -1 ... 11), or 3, 2, 3, 6 (-3 ... 13)."""
    real, generated = (np.reshape(x, (4, 1)) for x in ([0, 1, 3, 7], [-1.01, -3, 11.01, 100]))
    assert precision_recall(real, generated, k=1)[0] == 0
    assert precision_recall(real, generated, k=2)[0] == 0.75


def test_a_point_is_its_own_nearest_whatever_the_rounding(monkeypatch):
    """Around 0 and 0.001 the balls reach to 0.001, however far rounding puts a point from itself;
    around 5 to 4.999."""

    def rounded(a, b):
        return (a - b.T) ** 2 + 0.01 * (a == b.T)

    monkeypatch.setattr(metrics, "_squared_distances", rounded)
    real, generated = (np.reshape(x, (3, 1)) for x in ([0, 0.001, 5], [-0.05, -0.0005, 20]))
    assert precision_recall(real, generated, k=1)[0] == pytest.approx(1 / 3)


def test_nearest():
    rng = np.random.default_rng(24)
    data, queries = rng.standard_normal((300, 2, 4)), rng.standard_normal((270, 2, 4))
    distances, indices = nearest(queries, data, k=3)
    every = np.linalg.norm((queries[:, None] - data).reshape(270, 300, 8), axis=2)
    np.testing.assert_array_equal(indices, every.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3])
    distances, indices = nearest(data[[5, 299]], data)
    assert indices.ravel().tolist() == [5, 299] and np.all(distances < 1e-6)


def test_what_these_metrics_refuse():
    a = np.random.default_rng(25).standard_normal((10, 3))
    for metric in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="different widths, 3 and 2"):
            metric(a, a[:, :2])
        with pytest.raises(ValueError, match="n >= 2"):
            metric(a, a[:1])
    for k in (0, 1.5, True, 10):
        with pytest.raises(ValueError, match=r"k must be (in 1 \.\.\. 9|a whole number >= 1), not"):
            precision_recall(a, a, k)
        with pytest.raises(ValueError, match=r"k (in 1 \.\.\. 9|must be a whole number >= 1), not"):
            nearest(a, a[:9], k)
    for pair in ((a, a * math.nan), (a * math.inf, a)):
        with pytest.raises(ValueError, match="queries and data must be finite"):
            nearest(*pair)
    with pytest.raises(ValueError, match="must be as wide"):
        nearest(a, a[:, :2])
    for options in ({"repeats": 1}, {"repeats": 2.5}, {"level": 1.0}, {"level": math.nan}):
        arguments = {"repeats": 10, "level": 0.9} | options
        with pytest.raises(ValueError, match=f"{min(options)} must"):
            bootstrap_interval(kernel_distance, a, a, rng=np.random.default_rng(0), **arguments)
