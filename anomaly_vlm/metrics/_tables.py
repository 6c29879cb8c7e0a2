"""Exact state of constant size for half-precision maps: counts by bit pattern, at most 2^16 distinct scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from anomaly_vlm.metrics._counts import Points, Sorted, distinct

Kind = Literal["float32", "float16", "bfloat16"]
HALF_KINDS: tuple[Kind, ...] = ("float16", "bfloat16")
NON_FINITE = {"float16": 0x7C00, "bfloat16": 0x7F80}  # all exponent bits set: infinity or NaN
SIZE = 1 << 16


def pattern_values(kind: Kind) -> np.ndarray:
    """float32 value of every bit pattern; NaN and infinities included."""
    return half_values(np.arange(SIZE, dtype=np.uint16), kind)


def half_values(bits: np.ndarray, kind: Kind) -> np.ndarray:
    """float32 values of uint16 bit patterns."""
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def histogram(bits: np.ndarray) -> np.ndarray:
    """[65536] int64 counts of uint16 bit patterns. torch counts them three times as fast as NumPy."""
    patterns = torch.from_numpy(bits.reshape(-1).view(np.int16)).to(torch.int32).bitwise_and_(SIZE - 1)
    return torch.bincount(patterns, minlength=SIZE).numpy()


def non_finite(counts: np.ndarray, kind: Kind) -> float | None:
    """A non-finite value that `counts` holds, or None."""
    for first in (NON_FINITE[kind], NON_FINITE[kind] | 0x8000):
        found = np.flatnonzero(counts[first : (first | 0x7FFF) + 1])
        if found.size:
            return float(pattern_values(kind)[first + int(found[0])])
    return None


class HalfTables:
    """Three tables of one half-precision dtype: normal items, anomalous items, weights for each connectivity.

    Attributes:
        kind: float16 or bfloat16.
        normals, anomalous: [65536] int64. weights: [C, 65536] float64.
        holes: [65536] float64 hole weights (see `_regions`), kept with `legacy` only, else None.
    """

    def __init__(self, kind: Kind, connectivities: int, *, legacy: bool) -> None:
        self.kind = kind
        self.normals = np.zeros(SIZE, np.int64)
        self.anomalous = np.zeros(SIZE, np.int64)
        self.weights = np.zeros((connectivities, SIZE))
        self.holes = np.zeros(SIZE) if legacy else None

    def add(
        self,
        valid: np.ndarray,
        bits: np.ndarray,
        weights: np.ndarray,
        hole_bits: np.ndarray,
        hole_weights: np.ndarray,
    ) -> None:
        """Adds one image.

        Args:
            valid: [65536] counts of all pixels that are not void. bits: [M] patterns of the anomalous ones. weights: [C, M].
            hole_bits, hole_weights: [Q].
        """
        self.normals += valid
        if bits.size:
            np.add.at(self.anomalous, bits, 1)
            np.subtract.at(self.normals, bits, 1)
            for row, values in zip(self.weights, weights, strict=True):
                np.add.at(row, bits, values)
        if self.holes is not None and hole_bits.size:
            self.holes += np.bincount(hole_bits, weights=hole_weights, minlength=SIZE)

    def merge(self, other: HalfTables) -> None:
        """Adds another state of the same kind."""
        self.normals += other.normals
        self.anomalous += other.anomalous
        self.weights += other.weights
        if self.holes is not None and other.holes is not None:
            self.holes += other.holes

    def pack(self) -> dict[str, np.ndarray]:
        """The tables as arrays."""
        out = {"normals": self.normals, "anomalous": self.anomalous, "weights": self.weights}
        return out if self.holes is None else {**out, "holes": self.holes}

    def unpack(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.normals, self.anomalous = arrays["normals"].copy(), arrays["anomalous"].copy()
        self.weights = arrays["weights"].copy()
        self.holes = arrays["holes"].copy() if "holes" in arrays else None

    def points(self) -> Points:
        """The distinct anomalous scores; -0.0 joins +0.0."""
        used = np.flatnonzero(self.anomalous)
        return distinct(pattern_values(self.kind)[used], self.weights[:, used], self.anomalous[used])

    def sorted_normals(self) -> Sorted:
        """The normal scores as a block with counts."""
        used = np.flatnonzero(self.normals)
        values = pattern_values(self.kind)[used]
        order = np.argsort(values, kind="stable")
        return Sorted(values[order], np.concatenate([[0], np.cumsum(self.normals[used][order])]))

    def hole_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and weights of hole pixels."""
        if self.holes is None:
            return np.empty(0, np.float32), np.empty(0)
        used = np.flatnonzero(self.holes)
        return pattern_values(self.kind)[used], self.holes[used]

    def span(self) -> tuple[float, float]:
        """Smallest and largest score; (inf, -inf) without any."""
        values = pattern_values(self.kind)[np.flatnonzero(self.normals + self.anomalous)]
        return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
