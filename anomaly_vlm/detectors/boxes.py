"""What detectors say of an image, and the pure functions that every backend's answer goes through.

Boxes of queries are relative centre form (cx, cy, w, h) of the whole image; boxes of detections are corners in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError

MAX_TOKENS = 256  # of a caption; the models cut longer ones without a word


@dataclass(frozen=True)
class Queries:
    """A detector's answer for one image and caption, before any threshold.

    Attributes:
        boxes: [k, 4] relative centre form, in query order.
        scores: [k] in (0, 1).
        probs: [k, T] probability of each of the caption's T word pieces; None where `phrases` are given.
        pieces: The T word pieces, `[CLS]` first.
        phrases: k ready phrases, of a detector without word pieces.
        floor: Queries with a score of at most this may be missing.
    """

    boxes: Tensor
    scores: Tensor
    probs: Tensor | None = None
    pieces: tuple[str, ...] = ()
    phrases: tuple[str, ...] | None = None
    floor: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Tensor) -> Queries:
        """Those at `index` [m]."""
        probs = None if self.probs is None else self.probs[index]
        phrases = None if self.phrases is None else tuple(self.phrases[i] for i in index.tolist())
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], probs=probs, phrases=phrases)


@dataclass(frozen=True)
class Detections:
    """Boxes of one image.

    Attributes:
        boxes: [n, 4] float32 (x0, y0, x1, y1) in pixels of the size asked for, not clipped.
        scores: [n].
        phrases: n phrases.
        valid: [n] bool, True unless a method's own rule says otherwise.
    """

    boxes: Tensor
    scores: Tensor
    phrases: tuple[str, ...]
    valid: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def caption_of(phrases: Sequence[str], *, separator: str = " . ") -> str:
    """Phrases as one caption: joined, lower case, stripped, one closing full stop."""
    text = separator.join(phrases).lower().strip()
    return text if text.endswith(".") else text + "."


def queries_of(logits: Tensor, boxes: Tensor, pieces: Sequence[str], image: str) -> Queries:
    """A model's raw output as `Queries`.

    Args:
        logits: [Q, 256 or T] of one image; columns past the caption are -inf.
        boxes: [Q, 4] relative centre form.
        pieces: Word pieces of the caption.
        image: Name of the image, for the error.

    Raises:
        UserError: A box is not finite.
    """
    if not torch.isfinite(boxes).all():
        raise UserError(f"the detector gave boxes that are not finite for image '{image}': its weights are at fault")
    probs = logits.float().sigmoid()[:, : len(pieces)].cpu()
    return Queries(boxes.float().cpu(), probs.amax(dim=1), probs, tuple(pieces))


def select(
    boxes: Tensor, scores: Tensor, *, box_threshold: float = 0.25, max_area: float = 1.0, keep_best: bool = False
) -> Tensor:
    """Indices [n] of the queries selected, in query order.

    Args:
        boxes: [k, 4] relative centre form.
        scores: [k].
        box_threshold: Queries with a score above it are kept.
        max_area: Queries with a relative area `w h` below it are kept; 1 lets every box in.
        keep_best: Where none is left, the one with the highest score, whatever its area.
    """
    area = boxes[:, 2] * boxes[:, 3]
    selected = (scores > box_threshold) & ((area < max_area) if max_area < 1 else True)
    if keep_best and not selected.any() and len(scores):
        return scores.argmax().view(1)
    return selected.nonzero().flatten()


def check_floor(queries: Queries, box_threshold: float) -> None:
    """Raises a `UserError` where the queries were stored above a score that is higher than `box_threshold`."""
    if box_threshold < queries.floor:
        raise UserError(
            f"box_threshold {box_threshold:g}: of this image only queries with a score above {queries.floor:.3g} were kept:"
            " give a higher threshold, or keep more with a lower detector.keep_score and a higher detector.keep_most"
        )


def phrases_of(queries: Queries, threshold: float) -> tuple[str, ...]:
    """The words of every query, k: ready ones, or by `phrase_of`."""
    if queries.phrases is not None:
        return queries.phrases
    assert queries.probs is not None
    return tuple(phrase_of(row, queries.pieces, threshold) for row in queries.probs)


def phrase_of(probs: Tensor, pieces: Sequence[str], threshold: float) -> str:
    """The words of a box: pieces [T] with a probability above `threshold`, `##` pieces glued on.

    The first column ([CLS]) and those from 255 on never count.
    """
    words = ""
    for i, (prob, piece) in enumerate(zip(probs.tolist(), pieces, strict=True)):
        if prob > threshold and 0 < i < MAX_TOKENS - 1:
            words += piece.removeprefix("##") if piece.startswith("##") else f" {piece}"
    return words.strip()


def corners(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Relative centre form [n, 4] -> corners (x0, y0, x1, y1) in pixels of an image of `size` (height, width)."""
    scale = boxes.new_tensor([size[1], size[0]])
    centre, half = boxes[:, :2] * scale, boxes[:, 2:] * scale / 2
    return torch.cat([centre - half, centre + half], dim=1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners [n, 4] cut to an image of `size` (height, width)."""
    high = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return boxes.clamp_min(0).minimum(high)


def detections(
    queries: Queries,
    size: tuple[int, int],
    *,
    box_threshold: float = 0.25,
    text_threshold: float = 0.25,
    max_area: float = 1.0,
    keep_best: bool = False,
) -> Detections:
    """Queries after thresholds, with phrases, in pixels of `size` (height, width).

    Raises:
        UserError: The queries were kept above a score that is higher than `box_threshold`.
    """
    check_floor(queries, box_threshold)
    index = select(queries.boxes, queries.scores, box_threshold=box_threshold, max_area=max_area, keep_best=keep_best)
    phrases = phrases_of(queries.select(index), text_threshold)
    boxes = corners(queries.boxes[index], size)
    return Detections(boxes, queries.scores[index], phrases, torch.ones(len(index), dtype=torch.bool))
