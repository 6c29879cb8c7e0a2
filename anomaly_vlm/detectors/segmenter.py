"""`Segmenter`: masks for boxes behind one small interface, and masks kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from anomaly_vlm.caching.tokens import read_entry, write_entry
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
SUFFIX = ".safetensors"
FORMAT = 1  # of entries


class MaskStore:
    """A folder of masks: computed once for an image and its boxes, one packed file each, written whole.

    Args:
        folder: shared by runs and processes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.hits = self.written = 0
        self._writing = True

    def key(self, image: Tensor, boxes: Tensor, about: Mapping[str, Any]) -> str:
        """Digest of pixels (uint8 [3, H, W]), boxes [n, 4] and segmenter."""
        facts = {"about": about, "image": list(image.shape), "boxes": list(boxes.shape), "format": FORMAT}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(image.contiguous().numpy().tobytes())
        digest.update(boxes.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + SUFFIX)

    def get(self, key: str) -> Tensor | None:
        """The masks kept under `key`, bool [n, H, W]; None where they are absent or damaged."""
        entry = read_entry(self._path(key))
        if entry is None:
            return None
        try:
            shape = entry["shape"].tolist()
            bits = np.frombuffer(zlib.decompress(entry["bits"].numpy().tobytes()), np.uint8)
            masks = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
        except (KeyError, ValueError, zlib.error):
            log.warning("masks: '%s' is damaged and is computed anew", self._path(key))
            return None
        self.hits += 1
        return torch.from_numpy(masks)

    def put(self, key: str, masks: Tensor) -> None:
        """Keeps masks. Never raises: a folder that cannot be written is none."""
        if not self._writing:
            return
        packed = zlib.compress(np.packbits(masks.numpy().reshape(-1)).tobytes(), 1)
        bits = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        try:
            path = self._path(key)
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            write_entry(path, {"shape": torch.tensor(masks.shape), "bits": bits})
            self.written += 1
        except (OSError, SafetensorError) as error:
            log.warning("masks cannot be kept in '%s' (%s): this run goes on without", self.folder, error)
            self._writing = False


class Segmenter(ABC):
    """Masks of what lies in boxes.

    Building one checks that its weights are there; they are read when the first image comes.

    Args:
        store: keeps masks on disk; None: every call computes them.
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
        """One mask a box: from the store where it has them, else computed and kept.

        Args:
            image: uint8 [3, H, W]. boxes: [n, 4] corners (x0, y0, x1, y1) in its pixels, which may lie outside.

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
