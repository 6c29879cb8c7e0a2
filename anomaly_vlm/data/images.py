"""Opening any image file the same way: first frame, upright, 8 bits a channel, no alpha."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from anomaly_vlm.errors import UserError

# What is decoded, whatever a file is called: a PostScript file named .png must not reach an interpreter.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
NATIVE = ("1", "L", "P", "RGB", "CMYK")  # modes that are resized as they are where the protocol converts afterwards


class ReadError(UserError):
    """A file that cannot be read. It keeps its one line when a loader process hands it on inside a traceback."""

    def __init__(self, message: str) -> None:
        name = f"{ReadError.__module__}.{ReadError.__qualname__}: "
        super().__init__(message.rsplit(name, 1)[-1])


def open_image(path: str) -> Image.Image:
    """The first frame of an image file, decoded, in one of the modes 1, L, P, RGB, CMYK.

    EXIF rotation is applied, alpha dropped (the colours below it stay, as in the official codes), 16-bit grey scaled to 8.

    Raises:
        ReadError: missing, no image, truncated, or float values outside 0-255.
    """
    return _eight_bit(_decoded(path), path)


def open_mask(path: str, threshold: int) -> np.ndarray:
    """A mask file as bool [H, W]: True where the 8-bit grey value is above `threshold`.

    16-bit values are compared at their own scale, so that small class numbers stay above 0.
    """
    image = _decoded(path)
    if image.mode.startswith("I"):
        return np.asarray(image) > threshold * 257
    return np.asarray(_eight_bit(image, path).convert("L")) > threshold


def open_labels(path: str) -> np.ndarray:
    """uint8 [H, W]: the values of a label file as they are stored (indices of a palette image).

    Raises:
        ReadError: no grey or palette image, or a value above 255.
    """
    image = _decoded(path)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise ReadError(f"label file '{path}' has colours (mode {image.mode}): give the file of class numbers")
    values = np.asarray(image)
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise ReadError(f"label file '{path}' has values from {values.min()} to {values.max()}: expected 0 to 255")
    return values.astype(np.uint8)


def _decoded(path: str) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as file:
            file.load()
            image = _upright(file)
    except FileNotFoundError as error:
        raise ReadError(f"image file '{path}' is missing: restore it, or take it out of the data set") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ReadError(f"image file '{path}' cannot be read ({_reason(error)}): replace the file") from error
    image.info.pop("transparency", None)  # a transparent colour is an alpha channel too
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing about the pixels
        return image


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the header alone."""
    if image.format == "PNG" and "exif" not in image.info:
        return image.size  # PIL would decode the file to look for EXIF behind the pixels
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # as in `_upright`
        turned = False
    return (image.height, image.width) if turned else image.size


def _eight_bit(image: Image.Image, path: str) -> Image.Image:
    if image.mode in NATIVE:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        top = 65535 if image.mode.startswith("I") else (1.0 if values.max() <= 1 else 255.0)
        if not (values.min() >= 0 and values.max() <= top):
            raise ReadError(
                f"image file '{path}' has values from {values.min()} to {values.max()}: give 8 or 16 bits a"
                " channel, or floats in 0-1"
            )
        grey = values >> 8 if top == 65535 else np.rint(values * (255 / top))
        return Image.fromarray(grey.astype(np.uint8))
    if image.mode in ("LA", "La"):
        return image.convert("L")
    return image.convert("RGBA").convert("RGB") if image.mode == "PA" else image.convert("RGB")


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
