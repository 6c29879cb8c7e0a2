"""Random numbers of methods: generators that depend on given numbers alone, never on a global state."""

from __future__ import annotations

import numpy as np


def derived_generator(*numbers: int) -> np.random.Generator:
    """A NumPy generator that depends on `numbers` alone, such as (seed, epoch, sample index)."""
    return np.random.default_rng([number & 0xFFFFFFFF for number in numbers])
