"""A part of a data set for quick trials."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_vlm.data.types import Sample


def balanced(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, as equally many of each category and label as there are; the order stays.

    Within a group they lie evenly spread over its list, and so over the defect types. The first ones of a small limit go to
    the first categories, each with both labels. No random numbers: the same set gives the same part.
    """
    if limit is None or limit >= len(samples):
        return list(samples)
    groups: dict[tuple, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((sample.dataset, sample.category, sample.label), []).append(i)
    members = [groups[key] for key in sorted(groups, key=lambda k: (k[0], k[1], -1 if k[2] is None else k[2]))]
    quota = [0] * len(members)
    left = limit
    while left:
        for g, group in enumerate(members):
            if left and quota[g] < len(group):
                quota[g] += 1
                left -= 1
    chosen = [
        group[(2 * k + 1) * len(group) // (2 * count)]
        for group, count in zip(members, quota, strict=True)
        for k in range(count)
    ]
    return [samples[i] for i in sorted(chosen)]
