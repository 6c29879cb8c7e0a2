"""`Segmenter`: masks for boxes behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly_vlm.detectors.stores import MaskStore
from anomaly_vlm.errors import UserError


class Segmenter(ABC):
    """Masks of what lies in boxes.

    Building one checks that its weights are there; they are read when the first image comes.

    Args:
        store: Keeps masks on disk; None: every call computes them.
    """

    name: ClassVar[str]  # results of one that replaces the paper's are labelled with it
    replaces: ClassVar[bool] = False

    def __init__(self, store: MaskStore | None = None) -> None:
        self.store = store

    @abstractmethod
    def look(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Masks bool [n, H, W] on the CPU of at least one box; see `masks`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What masks depend on besides pixels and boxes, as plain values."""

    def masks(self, image: Tensor, boxes: Tensor) -> Tensor:
        """One mask a box: from the store where it has them, else computed and stored.

        Args:
            image: uint8 [3, H, W].
            boxes: [n, 4] corners (x0, y0, x1, y1) in its pixels, which may lie outside.

        Returns:
            Bool [n, H, W] on the CPU.
        """
        image, boxes = image.cpu(), boxes.cpu().float()
        if image.ndim != 3 or image.dtype != torch.uint8 or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(
                f"image {image.dtype} {list(image.shape)}, boxes {list(boxes.shape)}: expected uint8 [3, H, W], [n, 4]"
            )
        if not torch.isfinite(boxes).all():
            raise UserError("a box to segment is not finite: the detector's weights or the boxes file are at fault")
        if len(boxes) == 0:
            return torch.zeros(0, *image.shape[1:], dtype=torch.bool)
        if self.store is None:
            return self.look(image, boxes)
        key = self.store.key(image, boxes, self.identity())
        found = self.store.get(key)
        if found is None:
            found = self.look(image, boxes)
            self.store.put(key, found)
        return found
