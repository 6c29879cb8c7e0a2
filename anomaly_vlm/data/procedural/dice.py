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

    Every parameter is drawn as an integer and turned into a float afterwards: integers agree between NumPy versions and
    processors to the last bit, which is what `drawn` (all of them, in order) lets a test hold.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.default_rng(key)
        self.drawn: list[int] = []

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        value = int(self._generator.integers(low, high))
        self.drawn.append(value)
        return value

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]."""
        return low + (high - low) * self.integer(0, STEPS) / (STEPS - 1)

    def log_uniform(self, low: float, high: float) -> float:
        """A float in [low, high] whose logarithm is uniform."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

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
        steps = self._generator.integers(0, STEPS, shape, dtype=np.uint16)
        self.drawn.append(int(steps.sum(dtype=np.int64)))
        return (steps.astype(np.float32) / np.float32(STEPS - 1) - np.float32(0.5)) * np.float32(math.sqrt(12))

    def grain(self, *shape: int) -> np.ndarray:
        """float32 `shape`, standard normal: sensor noise."""
        return self._generator.standard_normal(shape, dtype=np.float32)
