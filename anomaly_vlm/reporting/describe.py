"""What a run is trained and tested on, in words, for the log and the head of every table."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly_vlm.data import AnomalyData

VERBS = {"train": "trained on", "val": "validated on", "test": "tested on"}


@dataclass(frozen=True)
class DataDescription:
    """Descriptions of a data module.

    Attributes:
        sides: By side, such as `tested on magnetic_tile (1,344 images)`, in the order of a run.
        train: What is learned from; `not trained` where nothing is.
        references: `2 normal images of each category as references`, or nothing without any.
    """

    sides: dict[str, str]
    train: str
    references: str

    @property
    def whole(self) -> str:
        """All sides in one line."""
        return ", ".join(self.sides.values())


def describe_data(data: AnomalyData, *, evaluated: int | None = None) -> DataDescription:
    """Describes the sides that a data module has.

    Args:
        data: The data module.
        evaluated: How many test images have been evaluated, where that is known; None for all that there are.
    """
    shots = data.picks.num_shots
    references = f"{shots} normal image{'s' * (shots > 1)} of each category as references" if shots else ""
    if data.train_on != "dataset" or data.sources["train"] is None:
        train = references or "not trained"
    else:
        train = ", ".join(filter(None, [_side(data, "train"), references]))
    counts = {} if evaluated is None else {"test": evaluated}
    sides = {
        side: _side(data, side, counts.get(side))
        for side, source in data.sources.items()
        if source is not None and side != "train"
    }
    if data.sources["train"] is not None or data.train_on != "dataset":
        sides = {"train": train, **sides}
    return DataDescription(sides, train, references)


def _side(data: AnomalyData, side: str, evaluated: int | None = None) -> str:
    """`tested on procedural (600 images)`; of a limited side `50 of 1,200 images`."""
    count, source = len(data.samples(side)) if evaluated is None else evaluated, data.sources[side]
    total = data.total(side)
    images = f"{count:,} of {total:,} images" if count < total else f"{count:,} image{'s' * (count != 1)}"
    note = getattr(source, "note", "")
    return f"{VERBS[side]} {source.name if source else side} ({f'{note}; ' if note else ''}{images})"
