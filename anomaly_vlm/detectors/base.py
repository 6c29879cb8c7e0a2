"""`Detector`: an open-vocabulary detector behind one small interface; and `MapDetector`, which needs none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from anomaly_vlm.detectors.boxes import Detections, Queries, detections
from anomaly_vlm.detectors.stores import DetectionStore


class Picture:
    """An image for a detector: its pixels, decoded when they are asked for, and the name that messages use."""

    def __init__(self, name: str, source: Any) -> None:
        self.name, self._source = name, source

    def pixels(self) -> Image.Image:
        """The image, RGB, at its own size."""
        image = self._source if isinstance(self._source, Image.Image) else self._source()
        return image.convert("RGB")


class Detector(ABC):
    """Boxes of what a caption names in an image.

    Building one checks that its weights, files and packages are there; the weights are read when the first image comes.

    Args:
        store: Keeps raw answers on disk; None: every call runs the model.
    """

    name: ClassVar[str]  # of the backend; results of one that replaces the paper's detector are labelled with it
    replaces: ClassVar[bool] = False
    reads_captions: ClassVar[bool] = True  # False: its answer is the same whatever it is asked

    def __init__(self, store: DetectionStore | None = None) -> None:
        self.store = store

    @abstractmethod
    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        """The raw answer for each picture and its caption."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What answers depend on besides pixels and caption (backend, weights, image size), as plain values."""

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raises a `UserError` where a caption is more than the detector reads. Called before the first image."""
        return

    def cost(self) -> str:
        """What the first pass costs where that is much, in a few words; '' where it is not."""
        return ""

    def queries(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        """Raw answers: from the store where it has them, else computed and stored."""
        if self.store is None:
            return self.look(pictures, captions)
        about = self.identity()
        pairs = list(zip(pictures, captions, strict=True))
        keys = [self.store.key(picture.pixels(), caption, about) for picture, caption in pairs]
        answers = [self.store.get(key) for key in keys]
        missing = [i for i, found in enumerate(answers) if found is None]
        if missing:
            fresh = self.look([pictures[i] for i in missing], [captions[i] for i in missing])
            for i, answer in zip(missing, fresh, strict=True):
                answers[i] = self.store.put(keys[i], answer)
        return [found for found in answers if found is not None]

    def detect(
        self,
        images: Sequence[str | Image.Image],
        captions: Sequence[str],
        *,
        size: tuple[int, int],
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        max_area: float = 1.0,
        keep_best: bool = False,
    ) -> list[Detections]:
        """Boxes of each image.

        Args:
            images: Paths or PIL images.
            captions: One caption for each image.
            size: (height, width) of the frame that the boxes are given in.
            box_threshold: See `boxes.select`.
            text_threshold: See `boxes.phrase_of`.
            max_area: See `boxes.select`.
            keep_best: See `boxes.select`.
        """
        pictures = [as_picture(image, i) for i, image in enumerate(images)]
        return [
            detections(
                found,
                size,
                box_threshold=box_threshold,
                text_threshold=text_threshold,
                max_area=max_area,
                keep_best=keep_best,
            )
            for found in self.queries(pictures, captions)
        ]


class MapDetector(ABC):
    """Boxes from a method's own anomaly map: no weights, no image, no caption."""

    name: ClassVar[str]
    replaces: ClassVar[bool] = True

    @abstractmethod
    def boxes(self, heat: Tensor) -> Detections:
        """Boxes of a map [H, W], in its pixels, the best first."""


def as_picture(image: str | Image.Image, number: int = 0) -> Picture:
    """A path or a PIL image as a `Picture`."""
    if isinstance(image, Image.Image):
        return Picture(str(getattr(image, "filename", "") or f"number {number}"), image)
    from anomaly_vlm.data.images import open_image

    return Picture(str(image), lambda: open_image(str(image)))
