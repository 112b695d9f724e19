import gzip
import hashlib
import struct
import zlib

import numpy as np
import pytest

from ldm_numpy.data import mnist

IMAGES, LABELS = mnist.FILES["train"]


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture
def digits():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([3, 1, 4, 1, 9], np.uint8)


@pytest.fixture
def folder(tmp_path, digits):
    for name, array in zip((IMAGES, LABELS), digits):
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_embedded_digits(split, n):
    images, labels = mnist.load(split)
    assert images.shape == (n, 28, 28) and images.dtype == np.uint8
    assert labels.shape == (n,) and labels.dtype == np.uint8
    content = struct.pack(">4I", 2051, n, 28, 28) + images.tobytes()
    assert hashlib.md5(content).hexdigest() == mnist.MD5[mnist.FILES[split][0]]
    content = struct.pack(">2I", 2049, n) + labels.tobytes()
    assert hashlib.md5(content).hexdigest() == mnist.MD5[mnist.FILES[split][1]]
    assert mnist.load(split)[0] is images  # kept in memory,
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0] = 1  # so nobody may change it


def test_first_training_labels():
    assert mnist.load("train")[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


def test_altered_embedded_file_is_refused(folder, monkeypatch):
    monkeypatch.setattr(mnist, "_EMBEDDED", folder)
    mnist._embedded.cache_clear()
    with pytest.raises(ValueError, match=f"{IMAGES} was altered: its md5"):
        mnist.load("train")
    (folder / IMAGES).unlink()
    with pytest.raises(ValueError, match=f"no file {IMAGES}"):
        mnist.load("train")
    mnist._embedded.cache_clear()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_any_folder(tmp_path, digits, compressed, dot):
    for name, array in zip((IMAGES, LABELS), digits):
        name = name.replace("-idx", ".idx") if dot else name
        if compressed:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (tmp_path / name).write_bytes(idx(array))
    images, labels = mnist.load("train", tmp_path)
    np.testing.assert_array_equal(images, digits[0])
    np.testing.assert_array_equal(labels, digits[1])


def test_bad_arguments(folder):
    with pytest.raises(ValueError, match="unknown split 'validation': use 'train' or 'test'"):
        mnist.load("validation")
    with pytest.raises(ValueError, match="does not exist"):
        mnist.load("train", folder / "nowhere")
    with pytest.raises(ValueError, match="no file t10k-images-idx3-ubyte"):
        mnist.load("test", folder)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda b: b"", "truncated: it ends inside the header"),
        (lambda b: b[:9], "truncated: it ends inside the header"),
        (lambda b: b[:-1], "truncated: 3919 bytes follow the header, not 3920"),
        (lambda b: b + b"\0", "has bytes after the 5 items"),
        (lambda b: b"\0\0\x08\x01" + b[4:], "starts with 0x00000801, not 0x00000803"),
        (lambda b: struct.pack(">4I", 2051, 5, 32, 32) + b[16:], r"\[32, 32\] pixels, not"),
        (lambda b: struct.pack(">4I", 2051, 0, 28, 28), "promises 0 items"),
        (lambda b: struct.pack(">4I", 2051, 2**32 - 1, 28, 28), "promises 4294967295 items"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_images(folder, digits, damage, message, compressed):
    content = damage(idx(digits[0]))
    (folder / IMAGES).unlink()
    if compressed:
        (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(content))
    else:
        (folder / IMAGES).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        mnist.load("train", folder)
    assert IMAGES in str(error.value)


def test_damaged_compression(folder, digits):
    whole = gzip.compress(idx(digits[0]))
    (folder / IMAGES).unlink()
    path = folder / f"{IMAGES}.gz"
    flipped = whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]
    for content, message in [
        (whole[: len(whole) // 2], "truncated: its compressed data end early"),
        (whole[:-3], "truncated: its compressed data end early"),
        (b"not gzip at all", "damaged"),
        (zlib.compress(idx(digits[0])), "damaged: .* incorrect header check"),
        (flipped, "damaged|truncated"),
        (whole[:-8] + b"sums" + whole[-4:], "damaged: .* incorrect data check"),
        (whole + b"\0", "damaged: bytes follow its compressed data"),
        (b"", "truncated: its compressed data end early"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            mnist.load("train", folder)


def test_decompression_is_bounded(folder, digits, monkeypatch):
    """A small file that unpacks to a gigabyte is not unpacked."""
    (folder / IMAGES).unlink()
    bomb = gzip.compress(idx(digits[0]) + bytes(10**7))
    (folder / f"{IMAGES}.gz").write_bytes(bomb)
    taken = []
    read = mnist.Unzipped.read
    monkeypatch.setattr(
        mnist.Unzipped, "read", lambda self, n: taken.append(read(self, n)) or taken[-1]
    )
    with pytest.raises(ValueError, match="has bytes after"):
        mnist.load("train", folder)
    assert sum(map(len, taken)) == 16 + 5 * 784 + 1


def test_damaged_labels(folder):
    for labels, message in [
        ([3, 1, 4, 1], "has 4 labels, but .* has 5 images"),
        ([3, 1, 4, 1, 10], "holds label 10: labels must be 0 to 9"),
    ]:
        (folder / LABELS).write_bytes(idx(np.array(labels, np.uint8)))
        with pytest.raises(ValueError, match=message):
            mnist.load("train", folder)


def test_to_float():
    x = mnist.to_float(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1))
    assert x.shape == (3, 1, 1, 1) and x.dtype == np.float32
    np.testing.assert_allclose(x.ravel(), [-1.0, -0.6, 1.0], rtol=1e-6)


@pytest.mark.parametrize("n, batch_size", [(10, 4), (10, 5), (3, 8), (1, 1), (7, 7)])
def test_every_epoch_has_every_example_once(n, batch_size):
    steps = -(-3 * n // batch_size)
    order = np.concatenate([mnist.batch_indices(n, batch_size, 0, step) for step in range(steps)])
    assert len(order) == steps * batch_size
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_batches_shuffle_by_seed_and_epoch():
    first = mnist.batch_indices(100, 100, 0, 0)
    assert not np.array_equal(first, np.arange(100))
    assert not np.array_equal(first, mnist.batch_indices(100, 100, 0, 1))
    assert not np.array_equal(first, mnist.batch_indices(100, 100, 1, 0))


def test_batches_are_random_access():
    straight = [mnist.batch_indices(50, 8, 3, step) for step in range(30)]
    mnist._permutation.cache_clear()
    for step in (29, 0, 13, 6, 7):  # 6 straddles two epochs
        np.testing.assert_array_equal(mnist.batch_indices(50, 8, 3, step), straight[step])
    resumed = mnist.batches(50, 8, 3, step=12)
    for step in (12, 13, 14):
        np.testing.assert_array_equal(next(resumed), straight[step])


@pytest.mark.parametrize("n, batch_size, step", [(0, 4, 0), (10, 0, 0), (10, -1, 0), (10, 4, -1)])
def test_batches_refuse_nonsense(n, batch_size, step):
    with pytest.raises(ValueError, match="must be >="):
        mnist.batch_indices(n, batch_size, 0, step)
