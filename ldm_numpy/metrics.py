"""How good samples are: as a set (Fréchet distance), against their prompt (accuracy, CLIP score).

All of it runs on the host, in float64, on features and measurements that others have made.
"""

import numpy as np

from .backend import to_host


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
    a, b = _features(features_a), _features(features_b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features have different widths, {a.shape[1]} and {b.shape[1]}")
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
    if not 2 <= n <= len(features) - 2:
        raise ValueError(f"cannot set {n} of {len(features)} features against the others")
    if shuffles < 1:
        raise ValueError(f"the number of shuffles must be at least 1, got {shuffles}")
    orders = (rng.permutation(len(features)) for _ in range(shuffles))
    return float(np.mean([frechet_distance(features[o[:n]], features[o[n:]]) for o in orders]))


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
    return float(((images @ captions.T).argmax(axis=1) == labels).mean())


def _features(features) -> np.ndarray:
    """Features (n, d) on the host in float64, checked to be enough, and finite."""
    features = np.asarray(to_host(features), dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (n, d) with n >= 2, got shape {features.shape}")
    if not np.all(np.isfinite(features)):
        raise ValueError("features contain values that are not finite")
    return features


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
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(length > 0):
        raise ValueError("an embedding of length zero has no direction")
    return vectors / length
