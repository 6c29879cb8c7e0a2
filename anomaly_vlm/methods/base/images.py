"""Images as a user has them (paths, PIL images, arrays, tensors), turned into batches and predictions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from anomaly_vlm.data.images import decode, eight_bit, read_bytes, white_of
from anomaly_vlm.data.on_demand import OnDemand
from anomaly_vlm.data.pixels import pixel_key
from anomaly_vlm.data.transforms import normalise, preprocessed, resize_image
from anomaly_vlm.data.types import Batch, PixelChange, Preprocess, References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.verdict import judge, known_category

log = logging.getLogger("anomaly_vlm")
Images = Any  # a path, a PIL image, an array [H, W, 3], a tensor [3, H, W] or [B, 3, H, W], or a list of these


def predict_images(method: Any, images: Images, category: str | Sequence[str] | None = None) -> Prediction:
    """Scores images of any kind and size; threads may share a method, which then takes one call at a time.

    Args:
        method: An `AnomalyMethod`.
        images: A path, a PIL image, a uint8 array `[H, W, 3]`, a tensor `[3, H, W]` or `[B, 3, H, W]` of RGB values in
            [0, 1], or a list of these.
        category: What the images show, for the text prompts; one word, or one each. None: the one that the method's
            checkpoint knows, else "object".

    Returns:
        Scores `[B]` and maps at the images' own size: `[B, H, W]`. Images of several sizes get maps of the first one's size.
        Where a checkpoint holds thresholds, also decisions, percentiles and regions, as `predict` on the command line.

    Raises:
        UserError: No image, or one that cannot be read.
    """
    pictures = as_pictures(images, method.max_value)
    tell_guesses(pictures)
    words = [category] * len(pictures) if category is None or isinstance(category, str) else list(category)
    categories = [known_category(method.known_categories, word) for word in words]
    if len(categories) != len(pictures):
        raise UserError(f"{len(pictures)} images with {len(categories)} categories: give one category, or one each")
    with _lock_of(method):
        _ask_detector(method, pictures, categories)
        method.eval()
        batches = BatchesOnDemand(method, pictures, categories)
        with torch.inference_mode():
            if method.is_transductive:
                _fit_together(method, batches)
            found = [method.predict(batch).checked(batch) for batch in batches]
    size = (pictures[0].height, pictures[0].width)
    return Prediction(
        torch.cat([one.score for one in found]),
        torch.cat([_at_size(one.map, size) for one in found]),
        notes=tuple(note for one in found for note in one.notes),
        verdicts=tuple(
            judge(float(one.score), one.map[0].cpu().numpy(), picture.size, method.decision_thresholds.get(word))
            for one, picture, word in zip(found, pictures, categories, strict=True)
        ),
    )


_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def _lock_of(method: Any) -> threading.RLock:
    """The lock of a method, kept outside it so that the method can still be copied and pickled."""
    with _locks_lock:
        return _locks.setdefault(method, threading.RLock())


def _at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


class BatchesOnDemand(OnDemand):
    """Batches of one image each, made on the method's device when they are asked for."""

    def __init__(
        self, method: Any, pictures: Sequence[Image.Image], categories: Sequence[str], rows: Sequence[int] | None = None
    ) -> None:
        super().__init__(
            partial(_batch_of, method, pictures, categories), range(len(pictures)) if rows is None else rows
        )
        self.pictures, self.categories = pictures, categories


def _batch_of(method: Any, pictures: Sequence[Image.Image], categories: Sequence[str], row: int) -> Batch:
    """The batch of one image, on the method's device."""
    return as_batch(method, [pictures[row]], categories[row], first=row).to(method.device)


def _fit_together(method: Any, batches: BatchesOnDemand) -> None:
    """Hands all images of each category to a transductive method."""
    rows: dict[str, list[int]] = {}
    for row, category in enumerate(batches.categories):
        rows.setdefault(category, []).append(row)
    method.check_test_set({category: len(members) for category, members in rows.items()})
    for category, members in rows.items():
        method.fit_test_category(category, BatchesOnDemand(method, batches.pictures, batches.categories, members))


def references_of(method: Any, images: Images, category: str) -> References:
    """Normal images of one category as a few-shot method takes them; see `predict_images` for their kinds."""
    pictures = as_pictures(images, method.max_value)
    tell_guesses(pictures)
    batch = as_batch(method, pictures, category)
    return References(batch, partial(_at_side, method, pictures), partial(_changed, method, pictures))


def as_batch(method: Any, pictures: Sequence[Image.Image], category: str, *, first: int = 0) -> Batch:
    """PIL images through the method's own transform, as a batch of unlabelled images.

    Args:
        method: An `AnomalyMethod`; without a `preprocess` of its own, images are squashed to the backbone's size.
        pictures: Of one size after the transform.
        category: What they show.
        first: Position of the first one, for what a method draws at random.
    """
    count = len(pictures)
    return Batch(
        unencoded=_pixels(pictures, preprocess_of(method)),
        label=torch.full((count,), -1),
        mask=None,
        category=[category] * count,
        path=[_name(picture, first + i) for i, picture in enumerate(pictures)],
        index=torch.arange(first, first + count),
        key=[_key(picture, preprocess_of(method)) for picture in pictures],
    )


def preprocess_of(method: Any) -> Preprocess:
    """The method's transform, or a square of the backbone's size."""
    backbone = method.backbone
    return method.preprocess or Preprocess(size=backbone.image_size, mean=backbone.mean, std=backbone.std)


def as_pictures(images: Images, max_value: float | None = None) -> list[Image.Image]:
    """Images of any kind as PIL images at their own size; `max_value` is white in files of more than 8 bits."""
    if isinstance(images, Tensor) and images.ndim == 4:
        images = list(images)
    if isinstance(images, list | tuple):
        found = [picture for image in images for picture in as_pictures(image, max_value)]
        if not found:
            raise UserError("no images: give a path, a PIL image, an array, a tensor, or a list of these")
        return found
    return [_as_picture(images, max_value)]


def _as_picture(image: Any, max_value: float | None) -> Image.Image:
    if isinstance(image, Image.Image):
        return _as_from_file(image, max_value)
    if isinstance(image, str | Path):
        picture = _eight_bit(decode(str(image)).image, str(image), max_value)
        picture.filename = picture.unchanged_file = str(image)  # type: ignore[attr-defined]
        picture.max_value = max_value  # type: ignore[attr-defined]
        return picture
    if isinstance(image, Tensor | np.ndarray) and 0 in image.shape:
        raise UserError(f"an image of shape {list(image.shape)} has no pixels: give one that has some")
    if isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3 and image.is_floating_point():
        if not (image.amin() >= 0 and image.amax() <= 1):  # also of NaN
            raise UserError(
                f"the image has values from {image.amin():g} to {image.amax():g}: give RGB values in [0, 1], not normalised"
            )
        return Image.fromarray((image.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] == (3,)):
        return Image.fromarray(image)
    shape = f" of shape {list(image.shape)} and type {image.dtype}" if isinstance(image, Tensor | np.ndarray) else ""
    raise UserError(
        f"an image is a {type(image).__name__}{shape}: give a path, a PIL image, a uint8 array [H, W, 3], or a tensor"
        " [3, H, W] of RGB values in [0, 1]"
    )


def _as_from_file(image: Image.Image, max_value: float | None) -> Image.Image:
    """A PIL image as its file would be opened: upright, 8 bits a channel, no alpha; itself where it is that."""
    if 0 in image.size:
        raise UserError(f"an image of {image.width}x{image.height} has no pixels: give one that has some")
    name = str(getattr(image, "filename", ""))
    upright, turned = image, False
    with suppress(Exception):  # damaged EXIF says nothing about the pixels
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    if turned or "transparency" in image.info:
        upright = ImageOps.exif_transpose(image)  # a copy: the user's own stays as it is
        upright.info.pop("transparency", None)
    picture = _eight_bit(upright, name or "in memory", max_value)
    if name and picture is not image:
        picture.filename = name  # type: ignore[attr-defined]
    return picture


def _eight_bit(image: Image.Image, name: str, max_value: float | None) -> Image.Image:
    """As `data.images.eight_bit`, which guesses the value of white where none is given; the picture knows the guess."""
    picture = eight_bit(image, name, max_value)
    if max_value is None and (image.mode == "F" or image.mode.startswith("I")):
        white = white_of(float(np.asarray(image).max()), is_float=image.mode == "F")
        picture.guessed_white = white  # type: ignore[attr-defined]
    return picture


def tell_guesses(pictures: Sequence[Image.Image]) -> None:
    """Says which value of white was guessed, as `FileSource` does for a data set."""
    whites = {white for picture in pictures if (white := getattr(picture, "guessed_white", 65535)) < 65535}
    if whites:
        log.warning(
            "images of more than 8 bits, whose values say that white is %s; if it is not, set max_value of the method",
            " or ".join(f"{white:g}" for white in sorted(whites)),
        )


def _pixels(pictures: Sequence[Image.Image], preprocess: Preprocess) -> Tensor:
    """Normalised pixels `[B, 3, S, S]`."""
    resized = [resize_image(picture, preprocess).float().div(255) for picture in pictures]
    return torch.stack([normalise(image, preprocess) for image in resized])


def _at_side(method: Any, pictures: Sequence[Image.Image], side: int) -> Tensor:
    return _pixels(pictures, replace(preprocess_of(method), size=side))


def _changed(method: Any, pictures: Sequence[Image.Image], change: PixelChange) -> list[Tensor]:
    preprocess = preprocess_of(method)
    arrays = (np.asarray(picture.convert("RGB")) for picture in pictures)
    return [preprocessed(change(pixels, i), preprocess) for i, pixels in enumerate(arrays)]


def _key(picture: Image.Image, preprocess: Preprocess) -> str | None:
    """The key of a file's pixels, as data sets give it; None for an image from memory."""
    path = getattr(picture, "unchanged_file", None)
    if path is None:
        return None
    return pixel_key(read_bytes(path), replace(preprocess, decode="full"), getattr(picture, "max_value", None))


def _name(picture: Image.Image, number: int) -> str:
    return str(getattr(picture, "filename", "") or f"image {number}")


def _ask_detector(method: Any, pictures: Sequence[Image.Image], categories: Sequence[str]) -> None:
    """What the method's detector finds in the images, where it has one that looks at them."""
    from anomaly_vlm.detectors import Detector, Picture

    detector = getattr(method, "detector", None)
    if not isinstance(detector, Detector):
        return
    for i, (picture, category) in enumerate(zip(pictures, categories, strict=True)):
        for caption in method.captions(category):
            (answer,) = detector.queries([Picture(_name(picture, i), picture)], [caption])
            method.detections[_name(picture, i), caption] = answer
