"""Arrays to pictures: single images, grids with captions, strips from noise to digit, GIFs."""

import io
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from .backend import array_module, to_host
from .files import one_line, write_atomically

PAPER, LABEL = 48, 255  # grey of what lies between the cells, and of the letters
FONT_SIZE = 12
MAX_SIDE = 4096  # pixels: a PNG file that promises more is not decompressed
MAX_FILE = 64 << 20  # bytes of a PNG file


def to_pil(images) -> list[Image.Image]:
    """Images (N, H, W, 1) or (N, H, W, 3) in [-1, 1] as N pictures of mode "L" or "RGB"; what lies
    outside is clipped."""
    array = to_host(images)
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise ValueError(f"images must be (N, H, W, 1) or (N, H, W, 3), not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("images hold NaN or infinity: there is nothing to draw")
    pixels = np.clip(np.rint((array + 1.0) * 127.5), 0, 255).astype(np.uint8)
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]


def from_pil(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of mode "L" and one size as images (N, H, W, 1) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])  # (N, H, W)
    return pixels[..., None].astype(np.float32) / 127.5 - 1.0


def read_png(path: str | Path) -> Image.Image:
    """The picture in a PNG file, of whatever mode and size, once its checksums have been found
    right.

    Raises ValueError for a file that is missing, damaged, no PNG or larger than MAX_SIDE; and for
    what "L" cannot hold and `convert` would drop without a word: transparency, more frames, 16
    bits. Other formats are not tried: some of them have other programs run.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        if path.stat().st_size > MAX_FILE:
            raise ValueError(f"{path} has more than {MAX_FILE:,} bytes: too many for a picture")
        return _checked_png(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} cannot be read as a picture: it is no PNG file") from None
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise ValueError(f"{path} cannot be read as a picture: {reason}") from None


def _checked_png(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of frames that are none
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_SIDE is stricter
            with Image.open(path, formats=("PNG",)) as picture:
                if max(picture.size) > MAX_SIDE:
                    width, height = picture.size
                    raise ValueError(f"{width}x{height} pixels, of {MAX_SIDE} a side at most")
                picture.verify()  # the checksums, which load() passes over
            with Image.open(path, formats=("PNG",)) as picture:  # as one must after verify()
                picture.load()
                transparent = picture.has_transparency_data
    except (SyntaxError, ValueError, UserWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {one_line(error)}") from None
    except (AssertionError, IndexError, struct.error):  # from Pillow, where parts are missing
        raise ValueError(
            f"{path} cannot be read as a picture: its parts are not in order"
        ) from None
    if picture.get_format_mimetype() != "image/png":  # APNG; one frame may be a part of a picture
        raise ValueError(f"{path} is animated ({picture.n_frames} frames): save one as a picture")
    if transparent:
        raise ValueError(f"{path} has transparency: put it on black, and save it without")
    if picture.mode.startswith("I"):
        raise ValueError(f"{path} has 16 bits a pixel: save it with 8")
    return picture


def grid(
    images,
    columns: int,
    scale: int = 4,
    padding: int = 2,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Images (N, H, W, 1 or 3) in rows of `columns`, each pixel a square of `scale`.

    `labels` (N of them) are written under the cells, `row_labels` (one a row) to the left, broken
    into lines. Raises ValueError where sizes or counts do not fit.
    """
    if len(images) == 0:
        raise ValueError("there are no images to draw")
    if columns < 1 or scale < 1 or padding < 0:
        raise ValueError(
            f"columns and scale must be >= 1, padding >= 0: {columns}, {scale}, {padding}"
        )
    cells = to_pil(images)
    width, height = cells[0].width * scale, cells[0].height * scale
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    under = _wrap_all(labels, len(cells), width, "labels")
    left = _wrap_all(row_labels, rows, max(width, 8 * FONT_SIZE), "row_labels")

    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 3  # pixels from one line of text to the next
    caption_height = line * max((len(lines) for lines in under), default=0)
    margin = max((int(font.getlength(text)) + 5 for lines in left for text in lines), default=0)
    step_x, step_y = width + padding, height + caption_height + padding
    size = (margin + columns * step_x + padding, rows * step_y + padding)
    grey = cells[0].mode == "L"
    canvas = Image.new(cells[0].mode, size, PAPER if grey else (PAPER,) * 3)
    pen = ImageDraw.Draw(canvas)
    ink = LABEL if grey else (LABEL,) * 3
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        x, y = margin + padding + column * step_x, padding + row * step_y
        canvas.paste(cell.resize((width, height), Image.Resampling.NEAREST), (x, y))
        if under:
            for k, text in enumerate(under[i]):
                centred = x + (width - font.getlength(text)) / 2
                pen.text((centred, y + height + k * line), text, ink, font)
        if left and column == 0:
            top = y + max(0, (height - line * len(left[row])) // 2)
            for k, text in enumerate(left[row]):
                pen.text((padding + 1, top + k * line), text, ink, font)
    return canvas


def heated(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture (H, W, 1) in [-1, 1] with heat (H, W) in 0 ... 1 over it: (H, W, 3) in [-1, 1].

    Heat glows from black over red and yellow to white.
    """
    glow = np.stack([3 * heat, 3 * heat - 1, 3 * heat - 2], axis=-1).clip(0, 1)
    mixed = 0.4 * (image + 1) / 2 + 0.6 * glow
    return (2 * mixed - 1).astype(np.float32)


def strip(
    frames: Sequence,
    scale: int = 4,
    padding: int = 2,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """A trajectory, S batches of images (N, H, W, 1), as N rows: time runs from left to right."""
    if len(frames) == 0:
        raise ValueError("there are no frames to draw")
    stack = np.stack([to_host(frame) for frame in frames], axis=1)  # (N, S, H, W, 1)
    flat = stack.reshape(-1, *stack.shape[2:])  # (N*S, H, W, 1)
    return grid(flat, len(frames), scale, padding, row_labels=row_labels)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture; ValueError where the file cannot be written."""
    _write(image, path, format="PNG")


def save_gif(
    frames: Sequence[Image.Image], path: str | Path, duration: int = 100, hold: int = 1500
) -> None:
    """Write an endless animation: `duration` milliseconds a frame, `hold` for the last.

    Raises ValueError without frames, with frames of different sizes, or where it cannot be written.
    """
    if len(frames) == 0:
        raise ValueError("there are no frames to animate")
    sizes = sorted({frame.size for frame in frames})
    if len(sizes) > 1:
        raise ValueError(f"all frames of an animation must have one size, not {sizes}")
    first, *rest = frames
    durations = [duration] * len(rest) + [hold]
    _write(first, path, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def pad_to(images, side: int):
    """Images (N, H, W, C) in the middle of paper (-1): (N, side, side, C); 28 -> 32, say."""
    _, height, width, _ = images.shape
    if side < max(height, width):
        raise ValueError(f"cannot pad {height} x {width} images to {side} x {side}")
    top, left = (side - height) // 2, (side - width) // 2
    borders = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return array_module(images).pad(images, borders, constant_values=-1)


def crop_to(images, side: int):
    """The middle of images (N, H, W, C), arrays or Tensors: (N, side, side, C); undoes `pad_to`."""
    _, height, width, _ = images.shape
    if not 1 <= side <= min(height, width):
        raise ValueError(f"cannot crop {side} x {side} out of {height} x {width} images")
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def _wrap_all(labels: Sequence[str] | None, count: int, width: int, name: str) -> list[list[str]]:
    """Each label as lines no wider than `width` pixels; [] where there are no labels."""
    if labels is None:
        return []
    if len(labels) != count:
        raise ValueError(f"{len(labels)} {name} were given for {count}")
    font = ImageFont.load_default(FONT_SIZE)
    return [_wrap(label, width, font) for label in labels]


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Break a text between words, or inside a word wider than a whole line."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _write(image: Image.Image, path: str | Path | io.BytesIO, **options) -> None:
    content = io.BytesIO()
    image.save(content, **options)
    if isinstance(path, io.BytesIO):
        path.write(content.getvalue())
    else:
        write_atomically(path, content.getvalue())
