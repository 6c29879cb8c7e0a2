"""Mask files as people save them: which pixels are anomalous, and what is odd about the file.

A mask marks anomalous pixels by any value above 0, as long as it holds few values. Grey masks (JPEG, resized or smoothed
edges) are cut at half; palette masks count by index and not by brightness; a transparent mask without colours counts by its
transparency. An explicit threshold overrides this, as the protocols of published sets do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly_vlm.data.images import ReadError, decode, eight_bit, values_of

MOSTLY = "mark more than half of the image: where they are inverted, make the anomalous pixels the bright ones"
MANY_VALUES = 16  # a lossless mask with more values than this has grey edges; smaller values are numbers of classes
WHITE = 255
VOID_VALUE = 255  # in label files such as those of Pascal VOC, where it stands beside small class numbers


@dataclass(frozen=True)
class MaskFile:
    """A mask file, read.

    Attributes:
        anomalous: bool [H, W].
        oddity: What is unusual about the file, as the end of the sentence "3 masks ..."; empty where nothing is.
    """

    anomalous: np.ndarray
    oddity: str = ""


def open_mask(path: str, threshold: int | None) -> np.ndarray:
    """The anomalous pixels of a mask file, bool [H, W]; see `read_mask`."""
    return read_mask(path, threshold).anomalous


def read_mask(path: str, threshold: int | None) -> MaskFile:
    """Reads a mask file.

    Args:
        path: The file.
        threshold: 8-bit grey values above it are anomalous; 16-bit values are compared at their own scale, so that small
            class numbers stay above 0. None: as the module says.

    Raises:
        ReadError: The file cannot be read, or its meaning cannot be known.
    """
    decoded = decode(path)
    pages = "have several pages, of which the first is read" if decoded.frames > 1 else ""
    if threshold is not None:
        values = _thresholded_values(decoded.image, path)
        wide = decoded.image.mode.startswith("I")
        anomalous = values > (threshold * 257 if wide else threshold)
        grey_values = _greyness(values, decoded.format, threshold)
        return MaskFile(anomalous, pages or _coverage(anomalous) or grey_values or _inversion(anomalous))
    values, kind = _meaning(decoded.image, path)
    form = decoded.format
    del decoded  # a second copy of the pixels
    if values.dtype.kind in "if" and not (values >= 0).all():
        values = np.where(values > 0, values, 0)
        kind = "have values below 0 or none (NaN), which count as normal"
    present = _values_of(values)
    present = present[present != 0]
    if VOID_VALUE in present and len(present) > 1 and present[-2] < MANY_VALUES:
        shown = ", ".join(str(value) for value in (0, *present[:-1].tolist()[:3]))
        raise ReadError(
            f"mask '{path}' holds the values {shown} and 255, and 255 marks void pixels in some data sets: set"
            " mask_void=255 on the data set to leave them out, or mask_threshold=0 to count them as anomalous"
        )
    grey = form == "JPEG" or len(present) > MANY_VALUES or (len(present) > 2 and present[-1] == WHITE)
    if not grey and len(present) > 1 and present[-1] >= MANY_VALUES and not kind:
        shown = ", ".join(f"{value:g}" for value in present[:3])
        kind = f"hold several values ({shown}), all of which are anomalous (mask_threshold=N says otherwise)"
    limit = 0.0
    if grey and len(present):
        limit = 127.0 if present[-1] > 127 else float(present[-1]) / 2
    anomalous = values > limit
    oddity = _coverage(anomalous) or (_greyness(values, form, limit) if grey else kind) or kind
    return MaskFile(anomalous, pages or oddity or _inversion(anomalous))


def _thresholded_values(image: Image.Image, path: str) -> np.ndarray:
    """Grey values, compared with an explicit threshold as the published codes do."""
    if image.mode.startswith("I"):
        return values_of(image)
    return values_of(eight_bit(image, path).convert("L"))


def _meaning(image: Image.Image, path: str) -> tuple[np.ndarray, str]:
    """Values [H, W] of which 0 is the background, and what was taken for them where that is not plain grey."""
    if image.mode == "P":
        values = values_of(image)
        palette = np.array(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        dark = len(palette) == 0 or not palette[0].any()
        return values, "" if dark else "are palette images: index 0 is the background, whatever its colour"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        channels = np.asarray(image.convert("RGBA"))
        colour, alpha = channels[..., :3].max(axis=-1), channels[..., 3]
        if alpha.min() == 255:
            return colour, ""
        shape = "mark the region by transparency alone: what is not transparent is anomalous"
        visible = colour[alpha > 0]
        if len(visible) == 0 or visible.min() == visible.max() > 0 or colour.min() == colour.max():
            return alpha, shape
        if ((colour > 127) == (alpha > 127)).all():
            return alpha, ""
        raise ReadError(
            f"mask '{path}' has both colours and transparency, which mark different pixels: save it as a grey image, 0 for"
            " normal and 255 for anomalous pixels"
        )
    if image.mode in ("RGB", "CMYK", "YCbCr", "LAB", "HSV"):
        return np.asarray(image.convert("RGB")).max(axis=-1), ""
    values = values_of(image)
    return values.astype(np.uint8) if image.mode == "1" else values, ""


def _values_of(values: np.ndarray) -> np.ndarray:
    """The distinct values, ascending; the usual 0 and 255 are told by two comparisons, a fortieth of a sort."""
    if values.dtype != np.uint8 or not values.size:
        return np.unique(values)
    counts = {value: np.count_nonzero(values == value) for value in (0, WHITE)}
    if sum(counts.values()) == values.size:
        return np.array([value for value, count in counts.items() if count], np.uint8)
    return np.flatnonzero(Image.fromarray(values).histogram())


def _coverage(anomalous: np.ndarray) -> str:
    if not anomalous.any():
        return "mark no pixel at all"
    return "mark every pixel" if anomalous.all() else ""


def _inversion(anomalous: np.ndarray) -> str:
    return MOSTLY if 2 * np.count_nonzero(anomalous) > anomalous.size else ""


def _greyness(values: np.ndarray, form: str, limit: float) -> str:
    count = len(_values_of(values))
    if form != "JPEG" and count <= 3:
        return ""
    return f"hold up to {count} grey values: those above {limit:g} are anomalous (mask_threshold=N says otherwise)"


def describe_oddities(found: Iterable[tuple[str, str]], looked_at: int) -> list[str]:
    """One line for each kind of oddity; on large regions only where most masks have one.

    Args:
        found: Path of a mask and its oddity, for each mask that has one.
        looked_at: Number of masks that were read.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for path, oddity in found:
        kinds.setdefault(" ".join(oddity.split()[:2]), []).append((path, oddity))  # their numbers differ
    lines = []
    for members in kinds.values():
        if members[0][1] == MOSTLY and 2 * len(members) <= looked_at:
            continue
        path, oddity = max(members, key=lambda member: (len(member[1]), member[1]))
        parent = Path(path).parent.name
        lines.append(f"{len(members)} of {looked_at} masks {oddity} ({parent}/{Path(path).name})")
    return lines
