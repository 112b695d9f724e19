"""How good samples are: as a set (Fréchet and kernel distance, precision and recall), against their
prompt (accuracy, CLIP score), against what was learnt from (nearest neighbours).

All of it runs on the host, in float64, on features and measurements that others have made.
"""

import numpy as np
from scipy.special import ndtri

from .backend import to_host
from .checks import number, whole


def frechet_distance(features_a, features_b) -> float:
    """Squared Fréchet (2-Wasserstein) distance between Gaussians fitted to two sets of features.

        d^2 = |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))

    m, A, B the means and covariances (n - 1 in the denominator) of features (n_a, d) and (n_b, d).
    The square root of a product of covariances is where implementations lose digits, or turn
    complex. None is needed: with any factors A = L_a L_a^T and B = L_b L_b^T, the trace of the root
    is the sum of the singular values of L_a^T L_b; and the QR factorisation of the centred features
    gives factors without forming a covariance. Fewer samples than dimensions are no trouble.
    Dowson & Landau 1982; as a measure of images, Heusel et al. 2017 (FID), with other features.

    Two samples of one distribution are not at distance 0: see `frechet_floor`.
    Raises ValueError for fewer than two rows, or unequal widths.
    """
    a, b = _pair(features_a, features_b)
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = np.sum(root_a**2) + np.sum(root_b**2)
    return float(max(np.sum((mean_a - mean_b) ** 2) + traces - 2 * cross, 0.0))


def frechet_floor(features, n: int, shuffles: int, rng: np.random.Generator) -> float:
    """The distance that perfect samples would have: n real ones against the rest of `features`.

    It grows with the width of the features and falls as 1 / n, which is why distances are reported
    as multiples of it. Mean over `shuffles` random splits: data sets are not in random order.
    Raises ValueError unless both parts have two rows, and shuffles >= 1.
    """
    features = _features(features)
    if whole("n", n, at_least=2) > len(features) - 2:
        raise ValueError(f"cannot set {n} of {len(features)} features against the others")
    whole("shuffles", shuffles, at_least=1)
    orders = (rng.permutation(len(features)) for _ in range(shuffles))
    return float(np.mean([frechet_distance(features[o[:n]], features[o[n:]]) for o in orders]))


def kernel_distance(features_a, features_b) -> float:
    """Squared maximum mean discrepancy, with the kernel k(x, y) = (x^T y / d + 1)^3, d the width:

        mean of k(a, a') + mean of k(b, b') - 2 mean of k(a, b),    a' != a, b' != b

    An unbiased estimate, so that of two samples of one distribution it is 0 on the average (and
    negative half of the time), whatever their sizes. It compares the first three moments.
    Gretton et al. 2012, eq. 3; as a measure of images Binkowski et al. 2018, "Demystifying MMD
    GANs" (KID), with other features.
    """
    a, b = _pair(features_a, features_b)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def mean_of_pairs(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel(a, b).mean())


def bootstrap_interval(
    distance, features_a, features_b, repeats: int, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Where a distance of two sets would lie in `level` of all repetitions, if nothing but chance
    decided which samples were drawn: the estimate, and on both sides as many standard deviations
    of the same estimate from rows drawn anew, with replacement, as a normal distribution needs.

    (Not the quantiles of those: a row that occurs twice makes distances larger.) Efron 1979.
    Raises ValueError unless repeats >= 2 and 0 < level < 1.
    """
    whole("repeats", repeats, at_least=2)
    if not 0 < number("level", level) < 1:
        raise ValueError(f"level must lie between 0 and 1, not at {level}")
    a, b = _pair(features_a, features_b)
    again = [
        distance(*(x[rng.integers(0, len(x), len(x))] for x in (a, b))) for _ in range(repeats)
    ]
    estimate, reach = distance(a, b), ndtri(0.5 + level / 2) * np.std(again, ddof=1)
    return float(estimate - reach), float(estimate + reach)


def precision_recall(features_real, features_generated, k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of generated samples that lie where real ones do, and the
    share of real ones that lie where generated ones do.

    Where a set lies: in the balls around its points that reach to their k-th nearest neighbour in
    the set. Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing
    generative models", eq. 1 and 2. Sets of the same size are a fair comparison.
    Raises ValueError unless k is between 1 and the sizes less one.
    """
    real, generated = _pair(features_real, features_generated)
    if whole("k", k, at_least=1) >= min(len(real), len(generated)):
        raise ValueError(f"k must be in 1 ... {min(len(real), len(generated)) - 1}, not {k}")

    def inside(points, others) -> float:
        within = np.sqrt(_squared_distances(others, others))
        np.fill_diagonal(within, 0)  # itself, whatever the rounding
        radius = np.partition(within, k, axis=1)[:, k]  # the nearest is itself
        return float((np.sqrt(_squared_distances(points, others)) <= radius).any(axis=1).mean())

    return inside(generated, real), inside(real, generated)


def nearest(queries, data, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(distances, indices), (N, k) each: the k rows of data nearest to each query, nearest first.

    Of images as rows of pixels, samples and test digits against the training set: samples that lie
    nearer than test digits do were remembered, not drawn. Distances are Euclidean.
    """
    queries, data = (np.asarray(to_host(x), dtype=np.float64) for x in (queries, data))
    queries, data = queries.reshape(len(queries), -1), data.reshape(len(data), -1)
    if not (np.isfinite(queries).all() and np.isfinite(data).all()):
        raise ValueError("queries and data must be finite")
    if queries.shape[1] != data.shape[1] or whole("k", k, at_least=1) > len(data):
        raise ValueError(
            f"queries {queries.shape} and data {data.shape} must be as wide, and k in "
            f"1 ... {len(data)}, not {k}"
        )
    distances, indices = [], []
    for start in range(0, len(queries), 256):  # their distances to all data need room
        squared = _squared_distances(queries[start : start + 256], data)
        found = np.argpartition(squared, k - 1, axis=1)[:, :k]
        order = np.take_along_axis(squared, found, axis=1).argsort(axis=1)
        indices.append(np.take_along_axis(found, order, axis=1))
        distances.append(np.sqrt(np.take_along_axis(squared, indices[-1], axis=1)))
    return np.concatenate(distances), np.concatenate(indices)


def prompt_accuracy(measured, wanted, held_out=()) -> dict[str, float]:
    """Share of samples that are what their prompt asked for.

    Args:
        measured: (digit, weight, slant), integer arrays (N,): the digit a classifier reads, and the
            thirds that stroke width and slant are measured to fall in
        wanted: the same three, as prompted
        held_out: triples (digit, weight, slant) that training never saw

    Returns {"digit", "slant", "stroke", "all"}, where "all" asks for the three at once; and "all"
    over the prompts in held_out and over the others as "held_out" and "rest", where there are any.
    Raises ValueError for lengths that differ, or no samples.
    """
    measured, wanted = (np.stack([to_host(a) for a in triple]) for triple in (measured, wanted))
    if measured.shape != wanted.shape or measured.shape[0] != 3 or measured.size == 0:
        raise ValueError(
            f"measured {measured.shape} and wanted {wanted.shape} must both be "
            "(digit, weight, slant), with one of each a sample"
        )
    right = measured == wanted  # (3, N)
    every = right.all(axis=0)  # (N,)
    unseen = np.zeros(every.shape, dtype=bool)
    for triple in held_out:
        unseen |= (wanted == np.reshape(triple, (3, 1))).all(axis=0)
    digit, stroke, slant = (float(r.mean()) for r in right)
    accuracy = {"digit": digit, "slant": slant, "stroke": stroke, "all": float(every.mean())}
    groups = {"held_out": every[unseen], "rest": every[~unseen]}
    return accuracy | {name: float(g.mean()) for name, g in groups.items() if g.size}


def clip_score(image_embeddings, text_embeddings) -> float:
    """CLIPScore: the mean over pairs of 2.5 max(cos(image, text), 0), for embeddings (N, P) each.

    Hessel et al. 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", eq. 1,
    where 2.5 brings CLIP's usual cosines to a scale from 0 to 1. (Others report 100 max(cos, 0).)
    Row i of one belongs to row i of the other; lengths of the vectors do not matter.
    """
    images, texts = _unit(image_embeddings), _unit(text_embeddings)
    if images.shape != texts.shape:
        raise ValueError(f"images {images.shape} and texts {texts.shape} must come in pairs")
    return float(2.5 * np.maximum((images * texts).sum(axis=1), 0).mean())


def zero_shot_accuracy(image_embeddings, caption_embeddings, labels) -> float:
    """Share of images (N, P) whose own caption, row labels[i] of captions (K, P), ranks first.

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """
    images, captions, labels = _unit(image_embeddings), _unit(caption_embeddings), to_host(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{len(images)} images need as many labels, got shape {labels.shape}")
    if not ((labels >= 0) & (labels < len(captions))).all():
        raise ValueError(f"labels must be rows of the captions, 0 ... {len(captions) - 1}")
    return float(((images @ captions.T).argmax(axis=1) == labels).mean())


def _features(features) -> np.ndarray:
    """Features (n, d) on the host in float64, checked to be enough, and finite."""
    features = np.asarray(to_host(features), dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (n, d) with n >= 2, got shape {features.shape}")
    if not np.all(np.isfinite(features)):
        raise ValueError("features contain values that are not finite")
    return features


def _pair(features_a, features_b) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, checked to be of one width."""
    a, b = _features(features_a), _features(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have different widths, {a.shape[1]} and {b.shape[1]}")
    return a, b


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a_i - b_j|^2, (n, m), by one matrix product."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    return np.maximum(squares - 2 * (a @ b.T), 0)


def _mean_and_root(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,), and R (m, d) with covariance R^T R, m = min(n, d); see `frechet_distance`."""
    mean = features.mean(axis=0)
    r = np.linalg.qr(features - mean, mode="r")  # (n, d) = Q R -> (m, d)
    return mean, r / np.sqrt(len(features) - 1)


def _unit(vectors) -> np.ndarray:
    """Rows (N, P) on the host in float64, scaled to length 1."""
    vectors = np.asarray(to_host(vectors), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) == 0:
        raise ValueError(f"embeddings must be (N, P) with N >= 1, got shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("embeddings contain values that are not finite")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(length > 0):
        raise ValueError("an embedding of length zero has no direction")
    return vectors / length
