"""Boxes without a detector: connected components of a method's own map. Not part of any paper; results say so."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly_vlm.detectors.base import MapDetector
from anomaly_vlm.detectors.boxes import Detections
from anomaly_vlm.errors import UserError


class ComponentsDetector(MapDetector):
    """Boxes round the regions where a map, scaled to [0, 1], reaches `level`; 8-connected.

    Args:
        level: Level of the scaled map, in [0, 1], from which a pixel belongs to a component.
        flat: Maps whose range is smaller have no boxes.
        min_area: Smallest share of the image that a component covers.
        max_area: Boxes of this share or more are dropped.
        most: Boxes kept, by score (the map's maximum in the component).
    """

    name: ClassVar[str] = "components"

    def __init__(
        self, level: float = 0.5, flat: float = 1e-3, min_area: float = 0.0005, max_area: float = 0.7, most: int = 5
    ) -> None:
        if not 0 < level <= 1 or most < 1 or max_area <= 0 or min_area < 0:
            raise UserError(
                f"detector: level {level}, min_area {min_area}, max_area {max_area}, most {most}: give a level and areas"
                " from 0 to 1, and at least one box"
            )
        self.level, self.flat, self.min_area, self.max_area, self.most = level, flat, min_area, max_area, most

    def boxes(self, heat: Tensor) -> Detections:
        """Boxes around the components of a map [H, W], best first."""
        from scipy import ndimage  # read where it is used, so that the package loads without

        values = heat.detach().float().cpu().numpy()
        low, high = values.min(), values.max()
        found: list[tuple[float, tuple[int, int, int, int]]] = []
        if high - low >= self.flat:
            scaled = (values - low) / (high - low)
            labels, count = ndimage.label(scaled >= self.level, structure=np.ones((3, 3)))
            sizes = np.bincount(labels.ravel(), minlength=count + 1)
            for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
                box = (columns.start, rows.start, columns.stop, rows.stop)
                area = (columns.stop - columns.start) * (rows.stop - rows.start)
                if sizes[number] >= max(1, self.min_area * values.size) and area < self.max_area * values.size:
                    part = labels[rows, columns] == number
                    found.append((float(values[rows, columns][part].max()), box))
        found = sorted(found, key=lambda entry: -entry[0])[: self.most]
        return Detections(
            torch.tensor([box for _, box in found], dtype=torch.float32).view(-1, 4),
            torch.tensor([score for score, _ in found], dtype=torch.float32),
            ("anomaly",) * len(found),
            torch.ones(len(found), dtype=torch.bool),
        )
