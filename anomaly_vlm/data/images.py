"""Opening any image file the same way: first frame, upright, 8 bits a channel, no alpha."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from anomaly_vlm.data.deep_colour import deep_colours, has_deep_planes, is_deep_colour
from anomaly_vlm.errors import UserError

# What is decoded, whatever a file is called: a PostScript file named .png must not reach an interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
WHITE = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 8, 10, 12, 14 and 16 bits
NATIVE = ("1", "L", "P", "RGB", "CMYK")  # modes that are resized as they are where the protocol converts afterwards


class ReadError(UserError):
    """A file that cannot be read. It keeps its one line when a loader process hands it on inside a traceback."""

    def __init__(self, message: str) -> None:
        name = f"{ReadError.__module__}.{ReadError.__qualname__}: "
        super().__init__(message.rsplit(name, 1)[-1])


BAND = 4 * 10**6  # pixels that are copied at a time
DRAFT_ROOM = 2  # pixels of a draft a side for each one asked for, so that the resize has something to average


def open_image(path: str, max_value: float | None = None, *, content: bytes | None = None) -> Image.Image:
    """The first frame of an image file, decoded, in one of the modes 1, L, P, RGB, CMYK.

    EXIF rotation is applied, alpha dropped (the colours below it stay, as in the official codes).

    Args:
        path: The file.
        max_value: What white is in files of more than 8 bits, see `eight_bit`.
        content: Of the file, where it was sent and does not lie at `path`, which is then its name for messages.

    Raises:
        ReadError: Missing, no image, truncated, or values out of range.
    """
    return eight_bit(decode(path, content, max_value=max_value).image, path, max_value)


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; itself where it is, as `convert` would copy it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def values_of(image: Image.Image) -> np.ndarray:
    """The values of an image, `[H, W]` or `[H, W, channels]`, copied band by band: PIL makes two copies of a whole one."""
    if image.width * image.height <= 2 * BAND:
        return np.asarray(image)
    rows = max(1, BAND // image.width)
    bands = ((0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows))
    values: np.ndarray | None = None
    for band in bands:
        part = np.asarray(image.crop(band))
        if values is None:
            values = np.empty((image.height, *part.shape[1:]), part.dtype)
        values[band[1] : band[3]] = part
    assert values is not None
    return values


def open_labels(path: str) -> np.ndarray:
    """uint8 [H, W]: the values of a label file as they are stored (indices of a palette image).

    Raises:
        ReadError: No grey or palette image, or a value above 255.
    """
    image = decode(path).image
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise ReadError(f"label file '{path}' has colours (mode {image.mode}): give the file of class numbers")
    values = values_of(image)
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise ReadError(f"label file '{path}' has values from {values.min()} to {values.max()}: expected 0 to 255")
    return values.astype(np.uint8)


@dataclass(frozen=True)
class Decoded:
    """A decoded image file.

    Attributes:
        image: The first frame, upright.
        format: Of the file, such as `JPEG`.
        frames: Number of frames or pages in the file.
        size: (width, height) of the file, upright; that of `image` but for a draft.
    """

    image: Image.Image
    format: str
    frames: int
    size: tuple[int, int]


def decode(
    path: str, content: bytes | None = None, draft: int | None = None, max_value: float | None = None
) -> Decoded:
    """Decodes the first frame of a file, or of its `content`, in the mode of the file.

    Args:
        path: The file.
        content: What is decoded in its place.
        draft: Side in pixels that the image is resized to next. A JPEG file is then decoded at 1/2, 1/4 or 1/8 of its
            size, as long as `DRAFT_ROOM` times that many pixels a side remain: faster, in a fraction of the memory, and a
            few grey values off. None, and other formats: the whole image.
        max_value: Value of white in colour files of 16 bits a channel, of which all bits are then read; None: the upper
            eight bits are.

    Raises:
        ReadError: Missing, no image, truncated, or values above `max_value`.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as file:
            form, frames, size = str(file.format), getattr(file, "n_frames", 1), shown_size(file)
            file.seek(0)
            if has_deep_planes(file):
                raise ReadError(
                    f"image file '{path}' has 16 bits a channel in separate planes, which would be misread: save it with"
                    " interleaved channels (planar configuration 1) or with 8 bits"
                )
            deep = max_value is not None and max_value < WHITE[-1] and is_deep_colour(file)
            if draft is not None and form == "JPEG":
                file.draft(None, (DRAFT_ROOM * draft, DRAFT_ROOM * draft))
            file.load()
            drafted = file.size not in (size, size[::-1])
            image = _upright(_scaled_colour(file, path, content, max_value) if deep and max_value else file)
    except ReadError:
        raise
    except FileNotFoundError as error:
        raise ReadError(f"image file '{path}' is missing: restore it, or take it out of the data set") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ReadError(f"image file '{path}' cannot be read ({_reason(error)}): replace the file") from error
    image.info.pop("transparency", None)  # a transparent colour is an alpha channel too
    return Decoded(image, form, frames, size if drafted else image.size)


def _scaled_colour(file: Image.Image, path: str, content: bytes | None, white: float) -> Image.Image:
    """The colours of a file of 16 bits a channel, all bits of them, scaled so that `white` becomes 255."""
    values = deep_colours(path if content is None else io.BytesIO(content))
    if values.max(initial=0) > white:
        raise _range_error(path, values, white)
    image = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    image.getexif()[ExifTags.Base.Orientation] = orientation(file)
    return image


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # damaged EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)  # without a copy: a large image is the peak of the memory
    return image


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the header alone."""
    return (image.height, image.width) if orientation(image) >= 5 else image.size


def orientation(image: Image.Image) -> int:
    """The EXIF tag that says how the pixels are turned, from the header alone; 1: not at all."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # PIL would decode the file to look for EXIF behind the pixels
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `_upright`
        return 1


def eight_bit(image: Image.Image, path: str, max_value: float | None = None) -> Image.Image:
    """An image in one of the modes 1, L, P, RGB, CMYK, which have 8 bits a channel.

    Args:
        image: As it was decoded.
        path: Where it comes from, for the message.
        max_value: Value of white in 16-bit, 32-bit and float images; None: the least of `WHITE` that no pixel exceeds.

    Raises:
        ReadError: Values below 0, or above `max_value`.
    """
    if image.mode in NATIVE:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        high = float(values.max(initial=0))
        white = white_of(high, is_float=image.mode == "F") if max_value is None else max_value
        if not (values.min(initial=0) >= 0 and high <= white):
            raise _range_error(path, values, white)
        grey = values >> 8 if white == 65535 and image.mode != "F" else np.rint(values * (255 / white))
        return Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("LA", "La"):
        return image.convert("L")
    return image.convert("RGBA").convert("RGB") if image.mode == "PA" else image.convert("RGB")


def _range_error(path: str, values: np.ndarray, white: float) -> ReadError:
    if np.isnan(values).any():
        return ReadError(f"image file '{path}' has pixels without a value (NaN): fill them, or take the image out")
    found = f"image file '{path}' has values from {values.min()} to {values.max()}: expected 0 to {white:g}"
    if values.min() < 0:
        return ReadError(f"{found}; save it with black at 0")
    return ReadError(f"{found}; set max_value=N on the data set, the value of white")


def white_of(high: float, *, is_float: bool) -> float:
    """The value of white where the largest value is `high`: the least of `WHITE` that is not smaller; of floats also 1."""
    if is_float and high <= 1:
        return 1.0
    return next((white for white in WHITE if high <= white), WHITE[-1])


def guess_white(paths: Sequence[str], *, most: int = 64) -> float | None:
    """The value of white in a set of files of more than 8 bits, guessed from some of them.

    Args:
        paths: The image files.
        most: Number of files to look at, evenly spread.

    Returns:
        None where the files looked at have 8 bits a channel, or cannot be read.
    """
    chosen = [paths[len(paths) * i // most] for i in range(most)] if len(paths) > most else paths
    found: list[float] = []
    colour: list[float] = []
    for path in chosen:
        try:
            with Image.open(path, formats=FORMATS) as file:
                if file.mode == "F" or file.mode.startswith("I"):
                    values = np.asarray(file)
                    high = float(values[np.isfinite(values)].max(initial=0))
                    found.append(white_of(high, is_float=file.mode == "F"))
                elif is_deep_colour(file):
                    colour.append(white_of(_largest(file, path), is_float=False))
        except Exception:  # the check of files says what is wrong with it
            continue
    if not found and max(colour, default=WHITE[-1]) == WHITE[-1]:
        return None  # the upper eight bits are what is read anyway
    return max(found + colour)


def _largest(file: Image.Image, path: str) -> float:
    """The largest value of colours of 16 bits; 65535 where their upper eight bits rule out a smaller value of white."""
    upper = int(np.asarray(file).max(initial=0))
    return WHITE[-1] if upper << 8 > WHITE[-2] else float(deep_colours(path).max(initial=0))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError) or not text:
        return "no image format that is known"
    return text


def mask_size_error(mask: str, mask_size: tuple[int, int], image_size: tuple[int, int]) -> ReadError:
    """Sizes as (width, height)."""
    return ReadError(
        f"mask '{mask}' is {mask_size[0]}x{mask_size[1]} but its image is {image_size[0]}x{image_size[1]}: give masks at"
        " image size"
    )


def read_bytes(path: str) -> bytes:
    """The content of a file, or a `ReadError` where it is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ReadError(f"image '{path}' cannot be read ({error.strerror or error}): restore it") from error


def file_size(path: str) -> int:
    """Bytes of a file, or a `ReadError` where it is missing or empty."""
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise ReadError(f"image file '{path}' is missing: restore it, or take it out of the data set") from error
    if size == 0:
        raise ReadError(f"image file '{path}' is empty (0 bytes): replace the file")
    return size
