"""Random parameters as integers, so that the same key means the same picture on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
STEPS = 65536


class Dice:
    """One stream of random parameters, seeded by a key of non-negative integers.

    Every parameter is drawn as an integer from the raw bits of PCG64, a stream that NumPy keeps from version to version,
    and turned into a float afterwards. `drawn` holds all of them in order, so that a test can hold their hash.
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))
        self.drawn: list[int] = []

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        value = low + ((int(self._bits.random_raw()) >> 32) * (high - low) >> 32)
        self.drawn.append(value)
        return value

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return low + (high - low) * self.integer(0, STEPS) / (STEPS - 1)

    def log_uniform(self, low: float, high: float) -> float:
        """A float in [low, high] whose logarithm is uniform."""
        return low * math.exp(self.uniform(0, math.log(high / low)))

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self.integer(0, STEPS) < probability * STEPS

    def sign(self) -> float:
        """-1.0 or 1.0."""
        return 1.0 if self.integer(0, 2) else -1.0

    def angle(self) -> float:
        """Radians in [0, 2 pi)."""
        return 2 * math.pi * self.integer(0, STEPS) / STEPS

    def choice(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.integer(0, len(options))]

    def table(self, *shape: int) -> np.ndarray:
        """float32 `shape`, uniform with mean 0 and standard deviation 1."""
        steps = self._words(math.prod(shape)).reshape(shape)
        self.drawn.append(int(steps.sum(dtype=np.int64)))
        return (steps.astype(np.float32) / np.float32(STEPS - 1) - np.float32(0.5)) * np.float32(math.sqrt(12))

    def fractions(self, *shape: int) -> np.ndarray:
        """float32 `shape`, uniform in [0, 1]."""
        return self.table(*shape) / np.float32(math.sqrt(12)) + np.float32(0.5)

    def grain(self, *shape: int) -> np.ndarray:
        """float32 `shape`, close to standard normal (sum of three uniform numbers): sensor noise. Not part of `drawn`."""
        count = math.prod(shape)
        total = self._words(3 * count).reshape(3, count).sum(axis=0, dtype=np.float32)
        normals: np.ndarray = (total / np.float32(STEPS - 1) - np.float32(1.5)).reshape(shape) * np.float32(2)
        return normals

    def _words(self, count: int) -> np.ndarray:
        raw = self._bits.random_raw((count + 3) // 4)
        return np.atleast_1d(raw).astype("<u8").view("<u2")[:count]
