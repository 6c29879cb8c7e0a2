"""Answers of detectors and segmenters as they are stored on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly_vlm.caching.answers import AnswerStore
from anomaly_vlm.detectors.boxes import Queries
from anomaly_vlm.errors import UserError

FORMAT = 1  # of entries


class DetectionStore(AnswerStore):
    """Detectors' answers: the best queries before any threshold, so that thresholds can change without the model.

    Args:
        folder: Folder of the store, shared by runs and processes.
        keep_score: Queries of an answer with a score above it are stored, in query order; where there are none, the single
            best is.
        keep_most: Largest number of queries stored of an answer: the best ones.

    Raises:
        UserError: `keep_score` outside [0, 1) or `keep_most` below 1.
    """

    def __init__(self, folder: str | Path, *, keep_score: float = 0.05, keep_most: int = 50) -> None:
        if not 0 <= keep_score < 1 or keep_most < 1:
            raise UserError(
                f"detector.keep_score {keep_score}, keep_most {keep_most}: give a score from 0 to 1 and a count from 1 on"
            )
        super().__init__(folder, "detections")
        self.keep_score, self.keep_most = keep_score, keep_most

    def key(self, image: Image.Image, caption: str, about: Mapping[str, Any]) -> str:
        """Digest of decoded pixels, caption, detector and the limits of what is stored."""
        facts = {"about": about, "keep": [self.keep_score, self.keep_most], "size": image.size, "format": FORMAT}
        return self.digest([facts, caption], [np.ascontiguousarray(image.convert("RGB")).tobytes()])

    def get(self, key: str) -> Queries | None:
        """The answer stored under `key`; None where it is absent, damaged or of another form."""
        entry = self.read(key)
        if entry is None:
            return None
        try:
            text = json.loads(bytes(entry["text"].tolist()))
            floor, boxes, scores = float(entry["floor"]), entry["boxes"], entry["scores"]
            probs = entry.get("probs")
            pieces, phrases = tuple(text["pieces"]), text["phrases"]
            fits = boxes.shape == (len(scores), 4) and (probs is None or probs.shape == (len(scores), len(pieces)))
            if not fits or (probs is None) == (phrases is None):
                raise ValueError("shapes")
        except (KeyError, ValueError, TypeError):
            self.damaged(key)
            return None
        self.hits += 1
        return Queries(boxes, scores, probs, pieces, None if phrases is None else tuple(phrases), floor)

    def put(self, key: str, answer: Queries) -> Queries:
        """Stores the best of an answer and returns it. Never raises: a folder that cannot be written is left alone."""
        stored = best(answer, self.keep_score, self.keep_most)
        text = json.dumps({"pieces": stored.pieces, "phrases": stored.phrases}).encode()
        entry = {
            "boxes": stored.boxes.contiguous(),
            "scores": stored.scores.contiguous(),
            "floor": torch.tensor([stored.floor], dtype=torch.float64),
            "text": torch.tensor(list(text), dtype=torch.uint8),
        }
        if stored.probs is not None:
            entry["probs"] = stored.probs.contiguous()
        self.write(key, entry)
        return stored


def best(answer: Queries, score: float, most: int) -> Queries:
    """The queries above `score`, at most `most` of them (the best), in query order; the single best where none is above."""
    if len(answer) == 0:
        return answer
    above = (answer.scores > score).nonzero().flatten()
    floor = max(score, answer.floor)
    if len(above) > most:
        order = answer.scores[above].argsort(descending=True, stable=True)
        floor = max(floor, float(answer.scores[above][order[most]]))
        above = above[order[:most]].sort().values
    if len(above) == 0:
        above = answer.scores.argmax().view(1)
    return replace(answer.select(above), floor=floor)


class MaskStore(AnswerStore):
    """A folder of masks: computed once for an image and its boxes, one packed file each, written whole.

    Args:
        folder: Folder of the store, shared by runs and processes.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, "masks")

    def key(self, image: Tensor, boxes: Tensor, about: Mapping[str, Any]) -> str:
        """Digest of pixels (uint8 [3, H, W]), boxes [n, 4] and segmenter."""
        facts = {"about": about, "image": list(image.shape), "boxes": list(boxes.shape), "format": FORMAT}
        return self.digest(facts, [image.contiguous().numpy().tobytes(), boxes.float().contiguous().numpy().tobytes()])

    def get(self, key: str) -> Tensor | None:
        """The masks stored under `key`, bool [n, H, W]; None where they are absent or damaged."""
        entry = self.read(key)
        if entry is None:
            return None
        try:
            shape = entry["shape"].tolist()
            bits = np.frombuffer(zlib.decompress(entry["bits"].numpy().tobytes()), np.uint8)
            masks = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
        except (KeyError, ValueError, zlib.error):
            self.damaged(key)
            return None
        self.hits += 1
        return torch.from_numpy(masks)

    def put(self, key: str, masks: Tensor) -> None:
        """Keeps masks. Never raises: a folder that cannot be written is none."""
        packed = zlib.compress(np.packbits(masks.numpy().reshape(-1)).tobytes(), 1)
        bits = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        self.write(key, {"shape": torch.tensor(masks.shape), "bits": bits})
