"""A part of a data set for quick trials."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_vlm.data.types import Sample


def balanced(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, as equally many of each category and label as there are; the order stays.

    Within a group they lie evenly spread over its list, and so over the defect types. A small limit takes first categories
    with all their labels, so that every row of the results has its numbers. No random numbers: the same set gives the same
    part.
    """
    if limit is None or limit >= len(samples):
        return list(samples)
    categories: dict[tuple[str, str], dict[int, list[int]]] = {}
    for i, sample in enumerate(samples):
        labels = categories.setdefault((sample.dataset, sample.category), {})
        labels.setdefault(-1 if sample.label is None else sample.label, []).append(i)
    served: list[list[int]] = []  # groups of whole categories, as many as the limit has room for
    others: list[list[int]] = []
    for _, labels in sorted(categories.items()):
        fits = len(labels) <= limit - len(served) or not served
        (served if fits else others).extend(labels[label] for label in sorted(labels))
    chosen: list[int] = []
    for groups in (served, others):
        quota = _deal(limit - len(chosen), [len(group) for group in groups])
        for group, count in zip(groups, quota, strict=True):
            chosen += [group[(2 * k + 1) * len(group) // (2 * count)] for k in range(count)]
    return [samples[i] for i in sorted(chosen)]


def _deal(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` dealt out in turn to groups that can take `sizes`."""
    quota = [0] * len(sizes)
    left = min(total, sum(sizes))
    while left:
        for g, size in enumerate(sizes):
            if left and quota[g] < size:
                quota[g] += 1
                left -= 1
    return quota
