"""What the thresholds of a checkpoint make of an evaluated set: found, missed, false alarms, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_vlm.methods.base.prediction import ImageRow
from anomaly_vlm.metrics.thresholds import Counts, Threshold, better_than_chance, counts_at


def decisions(rows: Sequence[ImageRow], thresholds: Mapping[str, Threshold]) -> dict[str, Counts]:
    """By category what its threshold makes of the labelled images."""
    found = {}
    for category, threshold in thresholds.items():
        good, bad = scores_of(rows, category)
        if good or bad:
            found[category] = counts_at(threshold.score, good, bad)
    return found


def scores_of(rows: Sequence[ImageRow], category: str) -> tuple[list[float], list[float]]:
    """Scores of a category's normal and of its anomalous images, as its threshold is compared with them."""
    members = [row for row in rows if row.category == category]
    good, bad = ([row.decision_score for row in members if row.label == label] for label in (0, 1))
    return good, bad


def decision_record(counts: Mapping[str, Counts], thresholds: Mapping[str, Threshold]) -> dict[str, Any]:
    """The counts with their 95 % intervals as plain values, for `metrics.json`."""
    return {
        category: {
            "threshold": thresholds[category].score,
            "rule": thresholds[category].rule,
            **{
                name: {"count": part.count, "total": part.total, "interval": list(part.interval())}
                for name, part in (("found", one.found), ("missed", one.missed), ("false_alarms", one.false_alarms))
            },
        }
        for category, one in counts.items()
    }


def decision_lines(
    rows: Sequence[ImageRow], counts: Mapping[str, Counts], thresholds: Mapping[str, Threshold]
) -> list[str]:
    """`gear at 0.18: found 10 of 12 (52 to 98 %), ...`, and where scores tell nothing apart, that."""
    lines = []
    for category, one in counts.items():
        lines.append(f"{category} at {thresholds[category].score:.3g}: {one}")
        good, bad = scores_of(rows, category)
        if good and bad and not better_than_chance(good, bad):
            lines.append(
                f"warning: {category}: defective images do not score higher than good ones by more than chance"
            )
    return lines
