"""One set of images dealt out to training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError

SIDES = ("train", "val", "test")


def checked_shares(shares: float | Sequence[float]) -> tuple[float, float, float]:
    """The shares of training, validation and test.

    Args:
        shares: The share of training, the rest being the test set; or all three.

    Raises:
        UserError: They are no shares, or leave no training or no test images.
    """
    given = [shares, 0.0, 1 - shares] if isinstance(shares, int | float) else list(shares)
    numbers = [float(share) for share in given if isinstance(share, int | float)]
    if len(numbers) != 3 or abs(sum(numbers) - 1) > 1e-6 or min(numbers) < 0 or not (numbers[0] and numbers[2]):
        raise UserError(
            f"split is {shares}: give the share of training such as 0.7, or those of training, validation and test such as"
            " [0.6,0.2,0.2], which sum to 1"
        )
    return numbers[0], numbers[1], numbers[2]


def dealt(samples: Sequence[Sample], shares: tuple[float, float, float], *, seed: int) -> list[Sample]:
    """The samples with their `split` set to `train`, `val` or `test`, whatever it was.

    Each category and type of defect is dealt out by itself, in an order that the seed draws; of its n images the first
    round(n * share) are trained on. Where a group is large enough, every side with a share gets one of it.

    Args:
        samples: All images, in an order that does not depend on the file system.
        shares: See `checked_shares`.
        seed: Draws the order.
    """
    groups: dict[tuple[str, str, int | None], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.category, sample.defect, sample.label), []).append(i)
    split: dict[int, str] = {}
    for number, (_, members) in enumerate(sorted(groups.items(), key=lambda entry: str(entry[0]))):
        order = np.random.default_rng([seed, number]).permutation(members).tolist()
        counts = _counts(len(order), shares)
        sides = [side for side, count in zip(SIDES, counts, strict=True) for _ in range(count)]
        split.update(dict(zip(order, sides, strict=True)))
    return [replace(sample, split=split[i]) for i, sample in enumerate(samples)]


def _counts(total: int, shares: tuple[float, float, float]) -> list[int]:
    """Whole numbers close to the shares of a total, at least 1 for each share above 0 where there are enough."""
    ends = [round(total * sum(shares[: i + 1])) for i in range(3)]
    counts = [ends[0], ends[1] - ends[0], total - ends[1]]
    for i, share in enumerate(shares):
        if share and not counts[i] and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[i] += 1
    return counts
