"""Training in two stages: which epochs of a run belong to the first."""

from __future__ import annotations


def first_stage_epochs(first: int, second: int, epochs: int | None) -> int:
    """Epochs of the first stage in a run.

    Args:
        first: Epochs of the first stage in a whole run.
        second: Those of the second.
        epochs: Epochs of this run; None where it is not known. A run shorter than both stages keeps their proportion, and
            has at least one epoch of each stage that there is.
    """
    if not first or not second or epochs is None or epochs >= first + second:
        return first
    return min(max(1, round(epochs * first / (first + second))), max(1, epochs - 1))
