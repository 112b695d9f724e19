import errno
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load as plain_load
from safetensors.numpy import save as plain_save

from ldm_numpy import checkpoint, files

RNG = np.random.default_rng(0)
ARRAYS = {
    "unet.weight": RNG.normal(size=(3, 2)).astype(np.float32),
    "half": RNG.normal(size=4).astype(np.float16),
    "double": RNG.normal(size=(2, 1, 2)),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
METADATA = {"seed": 0, "config": {"channels": [32, 64], "name": "größe"}, "done": False, "x": None}


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "model.safetensors", ARRAYS, METADATA)
    return tmp_path / "model.safetensors"


def test_round_trip(path):
    arrays, metadata = checkpoint.load(path)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(array, ARRAYS[name])
    arrays["half"][0] = 1  # ours to change


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10)[::3],
        np.broadcast_to(np.float32(2), (2, 2)),
    ],
)
def test_any_memory_layout(tmp_path, array):
    checkpoint.save(tmp_path / "x", {"x": array}, {})
    np.testing.assert_array_equal(checkpoint.load(tmp_path / "x")[0]["x"], array)
    np.testing.assert_array_equal(plain_load((tmp_path / "x").read_bytes())["x"], array)


def test_equal_contents_make_equal_files(tmp_path, path):
    other = tmp_path / "other"
    backwards = dict(reversed(ARRAYS.items()))
    checkpoint.save(other, backwards, dict(reversed(METADATA.items())))
    assert other.read_bytes() == path.read_bytes()


def test_every_altered_byte_is_noticed(path):
    content = path.read_bytes()
    for i in range(len(content)):
        for flip in (1, 0x20):
            altered = bytearray(content)
            altered[i] ^= flip
            path.write_bytes(altered)
            with pytest.raises(ValueError) as error:
                checkpoint.load(path)
            assert "model.safetensors" in str(error.value), str(error.value)


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            checkpoint.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        checkpoint.load(path)


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.load(tmp_path)
    entry = '{"version": 1, "sha256": "0", "metadata": "{}"}'
    cases = [
        (b"PK\x03\x04 a zip or a pickle", "no safetensors file"),
        (plain_save({"x": np.zeros(2)}), "is a safetensors file, but not one of ldm_numpy"),
        (plain_save({"x": np.zeros(2)}, {"format": "pt"}), "but not one of ldm_numpy"),
        (plain_save({}, {"ldm_numpy": entry.replace("1", "2", 1)}), "format version 2, not 1"),
        (plain_save({}, {"ldm_numpy": entry}), "was altered: its contents do not match"),
        (plain_save({}, {"ldm_numpy": '{"version": 1}'}), "metadata are incomplete"),
        (plain_save({}, {"ldm_numpy": "[]"}), "metadata are incomplete"),
        (plain_save({}, {"ldm_numpy": "{"}), "metadata are incomplete"),
    ]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            checkpoint.load(path)


def test_tensors_swapped_under_one_checksum(path):
    """Same bytes under other names, shapes or types are another checkpoint."""
    a, b = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    checkpoint.save(path, {"a": a, "b": b}, {})
    content = path.read_bytes()
    for old, new in [(b'"a":', b'"c":'), (b"[4]", b"[2,2]"), (b'"F32"', b'"I32"')]:
        altered = content.replace(old, new)
        grown = len(altered) - len(content)
        header = int.from_bytes(content[:8], "little") + grown
        path.write_bytes(header.to_bytes(8, "little") + altered[8:])
        with pytest.raises(ValueError, match="was altered"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "arrays, metadata, message",
    [
        ({"x": np.array(["text"])}, {}, "cannot store these arrays"),
        ({"x": np.array([object()])}, {}, "cannot store these arrays"),
        ({"x": np.zeros(2, ">f4")}, {}, "cannot store .*byte order"),
        ({"__metadata__": np.zeros(2)}, {}, "cannot store .*name"),
        ({}, {"x": np.zeros(2)}, "must be what JSON can hold"),
    ],
)
def test_what_cannot_be_stored(path, arrays, metadata, message):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        checkpoint.save(path, arrays, metadata)
    assert path.read_bytes() == before


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept_where_that_is_asked_for(links, path, monkeypatch):
    """And only that one, on file systems with hard links or without."""

    def unsupported(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    older = path.with_name("model.previous.safetensors")
    for step in range(1, 4):
        before = path.read_bytes()
        checkpoint.save(path, {}, {"step": step}, keep=True)
        assert checkpoint.load(path)[1] == {"step": step} and older.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == [older.name, path.name]


def test_a_strangers_words_are_one_line_of_300_letters():
    assert files.one_line("a\nb\x00c\u2028d") == "a b c d"
    assert files.one_line("x" * 300) == "x" * 300
    assert files.one_line("x" * 301) == "x" * 297 + "..."


def test_a_failed_write_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device"):
        checkpoint.save(path, {}, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # nothing lies about


def test_a_kill_in_mid_write_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {}, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_synced_before_renamed(path, monkeypatch):
    """File to disk, whole, then the new name, then its folder: the order that survives a power
    cut."""
    calls, sizes = [], []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(fd):
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            assert os.path.samestat(status, path.parent.stat())
            calls.append("folder")
        else:
            sizes.append(status.st_size)
            calls.append("file")
        fsync(fd)

    def spy_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    checkpoint.save(path, ARRAYS, METADATA)
    assert calls == ["file", "rename"] + ["folder"] * (os.name == "posix")
    assert sizes == [path.stat().st_size]


def test_a_link_in_the_temporary_files_place_is_not_followed(path, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for name in (path, files.previous(path)):
        temporary = path.with_name(f".{name.name}.{os.getpid()}.tmp")
        temporary.symlink_to(tmp_path / "thesis.txt")
    checkpoint.save(path, ARRAYS, METADATA, keep=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert not path.is_symlink() and set(checkpoint.load(path)[0]) == set(ARRAYS)


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "nowhere" / "x", tmp_path / "file" / "x", tmp_path):
        with pytest.raises(ValueError, match="cannot write"):
            checkpoint.save(bad, ARRAYS, METADATA)


def test_half_precision():
    halves = checkpoint.half_precision(ARRAYS)
    for name, array in halves.items():
        kind = np.int64 if name == "step" else np.float16
        assert array.dtype == kind and array.shape == ARRAYS[name].shape
        np.testing.assert_allclose(array, ARRAYS[name], rtol=1e-3)
    for value in (1e5, np.nan, np.inf):
        with pytest.raises(ValueError, match="big has values that float16 cannot hold"):
            checkpoint.half_precision({"big": np.array([value], np.float32)})
