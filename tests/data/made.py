"""Samples that are drawn instead of read, for tests of everything behind the readers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly_vlm.data import Drawn, Preprocess, Sample

PIXELS = Preprocess(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@dataclass(frozen=True)
class Square:
    """A picture of one grey value; anomalous: with a white square in its top left quarter, which is the mask."""

    value: int
    anomalous: bool
    size: tuple[int, int] = (16, 16)  # height, width

    def draw(self) -> Drawn:
        image = np.full((*self.size, 3), self.value, np.uint8)
        mask = np.zeros(self.size, bool)
        if self.anomalous:
            mask[: self.size[0] // 2, : self.size[1] // 2] = True
            image[mask] = 255
        return Drawn(image, mask, "a square")


def squares(count: int, *, category: str = "gear", dataset: str = "squares", kind: str = "mask") -> list[Sample]:
    """Every other one anomalous."""
    return [
        Sample(
            path=f"{dataset}/{category}/{i:05d}",
            category=category,
            label=i % 2,
            dataset=dataset,
            kind=kind,  # type: ignore[arg-type]
            drawing=Square(10 + i, i % 2 == 1),
        )
        for i in range(count)
    ]


@dataclass
class Given:
    """A source of given samples, the same on every side."""

    found: list[Sample]
    name: str = "squares"

    def samples(self, side: str) -> list[Sample]:
        return list(self.found)
