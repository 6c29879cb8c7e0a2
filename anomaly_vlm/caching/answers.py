"""Detectors' answers on disk: computed once for an image and a caption, with the guarantees of the token cache.

Kept are the best queries before any threshold, so that thresholds can change without the model. One file an entry, written
beside its place and moved there whole; a damaged one counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from anomaly_vlm.caching.tokens import read_entry, write_entry
from anomaly_vlm.detectors.boxes import Queries
from anomaly_vlm.errors import UserError

log = logging.getLogger("anomaly_vlm")
SUFFIX = ".safetensors"
FORMAT = 1  # of entries


class DetectionStore:
    """A folder of answers.

    Args:
        folder: shared by runs and processes.
        keep_score, keep_most: kept of an answer are the queries with a score above the first, at most so many (the best), in
            query order; the single best where none is above.

    Raises:
        UserError: `keep_score` outside [0, 1) or `keep_most` below 1.
    """

    def __init__(self, folder: str | Path, *, keep_score: float = 0.05, keep_most: int = 50) -> None:
        if not 0 <= keep_score < 1 or keep_most < 1:
            raise UserError(
                f"detector.keep_score {keep_score}, keep_most {keep_most}: give a score from 0 to 1 and a count from 1 on"
            )
        self.folder = Path(folder).expanduser()
        self.keep_score, self.keep_most = keep_score, keep_most
        self.hits = self.written = 0
        self._writing = True

    def key(self, image: Image.Image, caption: str, about: Mapping[str, Any]) -> str:
        """Digest of decoded pixels, caption, detector and what is kept."""
        facts = {"about": about, "keep": [self.keep_score, self.keep_most], "size": image.size, "format": FORMAT}
        digest = hashlib.sha256(json.dumps([facts, caption], sort_keys=True).encode())
        digest.update(np.ascontiguousarray(image.convert("RGB")).tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / (key + SUFFIX)

    def get(self, key: str) -> Queries | None:
        """The answer kept under `key`; None where it is absent, damaged or of another form."""
        entry = read_entry(self._path(key))
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
            log.warning("detections: '%s' is damaged and is computed anew", self._path(key))
            return None
        self.hits += 1
        return Queries(boxes, scores, probs, pieces, None if phrases is None else tuple(phrases), floor)

    def put(self, key: str, answer: Queries) -> Queries:
        """Keeps the best of an answer, and returns what was kept. Never raises: a folder that cannot be written is none."""
        kept = best(answer, self.keep_score, self.keep_most)
        text = json.dumps({"pieces": kept.pieces, "phrases": kept.phrases}).encode()
        entry = {
            "boxes": kept.boxes.contiguous(),
            "scores": kept.scores.contiguous(),
            "floor": torch.tensor([kept.floor], dtype=torch.float64),
            "text": torch.tensor(list(text), dtype=torch.uint8),
        }
        if kept.probs is not None:
            entry["probs"] = kept.probs.contiguous()
        if self._writing:
            try:
                path = self._path(key)
                path.parent.parent.mkdir(parents=True, exist_ok=True)
                write_entry(path, entry)
                self.written += 1
            except (OSError, SafetensorError) as error:
                log.warning("detections cannot be kept in '%s' (%s): this run goes on without", self.folder, error)
                self._writing = False
        return kept


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
    return replace(answer.only(above), floor=floor)
