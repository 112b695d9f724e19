import numpy as np
import pytest
from PIL import Image

from ldm_numpy import images
from ldm_numpy.data import mnist

RNG = np.random.default_rng(0)
BATCH = RNG.uniform(-1, 1, (6, 28, 28, 1)).astype(np.float32)


def test_to_pil_undoes_to_float():
    digits = mnist.load("test")[0][:5]
    pictures = images.to_pil(mnist.to_float(digits))
    assert [p.mode for p in pictures] == ["L"] * 5
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pictures]), digits)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(np.asarray(images.to_pil(mnist.to_float(every))[0]), every[0])


def test_to_pil_clips_and_refuses():
    row = np.array([-7.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 5, 1)
    assert np.asarray(images.to_pil(row)[0]).tolist() == [[0, 0, 128, 255, 255]]
    for bad, message in [(BATCH[..., 0], r"must be \(N, H, W, 1\)"), (BATCH * np.nan, "NaN")]:
        with pytest.raises(ValueError, match=message):
            images.to_pil(bad)


def cell(picture, row, column, scale, padding, left=0, caption=0, side=28):
    """The pixels of one cell of a grid."""
    y = padding + row * (side * scale + padding + caption)
    x = left + padding + column * (side * scale + padding)
    return np.asarray(picture)[y : y + side * scale, x : x + side * scale]


def test_grid_places_every_image():
    picture = images.grid(BATCH[:5], columns=2, scale=3, padding=4)
    assert picture.mode == "L" and picture.size == (2 * 84 + 3 * 4, 3 * 84 + 4 * 4)
    for i, one in enumerate(images.to_pil(BATCH[:5])):
        block = cell(picture, *divmod(i, 2), scale=3, padding=4)
        np.testing.assert_array_equal(block, np.kron(one, np.ones((3, 3), np.uint8)))
    assert (cell(picture, 2, 1, 3, 4) == images.PAPER).all()  # the place left over
    assert images.grid(BATCH[:2], columns=8, scale=1, padding=0).size == (56, 28)
    assert images.grid(BATCH[:1], columns=8, scale=1, padding=0).size == (28, 28)


def test_grid_writes_labels_under_cells():
    bare = images.grid(BATCH[:4], columns=2, scale=2)
    labels = ["a", "a bold seven leaning left", "", "x" * 40]
    picture = images.grid(BATCH[:4], columns=2, scale=2, labels=labels)
    assert picture.width == bare.width
    caption = (picture.height - bare.height) // 2
    assert caption > 2 * images.FONT_SIZE  # the long ones took several lines
    written = []
    for i in range(4):
        block = cell(picture, *divmod(i, 2), scale=2, padding=2, caption=caption)
        expected = cell(bare, *divmod(i, 2), scale=2, padding=2)
        np.testing.assert_array_equal(block, expected)  # no letter over an image
        y, x = 2 + (i // 2) * (58 + caption) + 56, 2 + (i % 2) * 58
        written.append((np.asarray(picture)[y : y + caption, x : x + 56] > 150).sum())
    assert written[0] > 0 and written[1] > written[0] and written[2] == 0 and written[3] > 0
    gap = np.asarray(picture)[:, 58:60]  # the column between the cells
    assert (gap == images.PAPER).all()


def test_grid_writes_row_labels_to_the_left():
    bare = images.grid(BATCH, columns=3, scale=2)
    picture = images.grid(BATCH, columns=3, scale=2, row_labels=["seven", "a thin 3"])
    left = picture.width - bare.width
    assert left > 20 and picture.height == bare.height
    pixels = np.asarray(picture)
    np.testing.assert_array_equal(pixels[:, left:], np.asarray(bare))
    for rows in (slice(0, 60), slice(60, None)):
        assert (pixels[rows, :left] > 150).any()


def test_labels_are_drawn_whatever_they_hold():
    labels = ["çà 七 🎨", "two\nlines\tand a tab", "\x00\udcff"]
    assert images.grid(BATCH[:3], 3, labels=labels).mode == "L"


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((BATCH[:0], 2), {}, "there are no images"),
        ((BATCH, 0), {}, "columns and scale must be >= 1"),
        ((BATCH, 2), {"scale": 0}, "columns and scale must be >= 1"),
        ((BATCH, 2), {"padding": -1}, "padding >= 0"),
        ((BATCH, 2), {"labels": ["a"]}, "1 labels were given for 6"),
        ((BATCH, 2), {"row_labels": ["a"] * 6}, "6 row_labels were given for 3"),
    ],
)
def test_grid_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        images.grid(*arguments, **options)


def test_strip_runs_from_left_to_right():
    frames = [BATCH[:2] * level for level in (0.0, 0.3, 0.6, 1.0)]
    picture = images.strip(frames, scale=1, padding=1)
    assert picture.size == (4 * 29 + 1, 2 * 29 + 1)
    for row in range(2):
        for column, frame in enumerate(frames):
            block = cell(picture, row, column, scale=1, padding=1)
            np.testing.assert_array_equal(block, np.asarray(images.to_pil(frame)[row]))
    with pytest.raises(ValueError, match="there are no frames"):
        images.strip([])


def test_gif_is_animated(tmp_path):
    path = tmp_path / "digits.gif"
    frames = images.to_pil(BATCH[:4])
    images.save_gif(frames, path, duration=80, hold=900)
    with Image.open(path) as gif:
        assert gif.n_frames == 4 and gif.size == (28, 28) and gif.info["loop"] == 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info["duration"] == (900 if i == 3 else 80)
            shown = np.asarray(gif.convert("L")).astype(int)
            assert np.abs(shown - np.asarray(frame)).max() <= 1


def test_files_that_cannot_be_written(tmp_path):
    frames = images.to_pil(BATCH[:2])
    images.save_png(frames[0], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(frames[0]))
    nowhere = tmp_path / "nowhere" / "a"
    with pytest.raises(ValueError, match=r"cannot write .*nowhere.*: No such file"):
        images.save_png(frames[0], nowhere)
    with pytest.raises(ValueError, match=r"cannot write .*nowhere"):
        images.save_gif(frames, nowhere)
    with pytest.raises(ValueError, match="there are no frames"):
        images.save_gif([], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one size"):
        images.save_gif([frames[0], frames[1].resize((9, 9))], tmp_path / "a.gif")


@pytest.mark.parametrize("shape", [(28, 28), (27, 28), (1, 32), (32, 32)])
def test_pad_to_and_crop_to(shape):
    x = RNG.uniform(-1, 1, (2, *shape, 3)).astype(np.float32)
    padded = images.pad_to(x, 32)
    assert padded.shape == (2, 32, 32, 3) and padded.dtype == np.float32
    top, left = (32 - shape[0]) // 2, (32 - shape[1]) // 2
    np.testing.assert_array_equal(padded[:, top : top + shape[0], left : left + shape[1]], x)
    assert (padded == -1).sum() == padded.size - x.size
    if shape[0] == shape[1]:
        np.testing.assert_array_equal(images.crop_to(padded, shape[0]), x)


def test_pad_and_crop_refuse():
    with pytest.raises(ValueError, match="cannot pad 28 x 28 images to 27 x 27"):
        images.pad_to(BATCH, 27)
    for side in (29, 0, -3):
        with pytest.raises(ValueError, match=f"cannot crop {side} x {side} out of 28 x 28"):
            images.crop_to(BATCH, side)
