"""Boxes from a map's connected regions."""

from __future__ import annotations

import pytest
import torch

from anomaly_vlm.detectors import ComponentsDetector
from anomaly_vlm.errors import UserError


def example() -> torch.Tensor:
    heat = torch.full((8, 8), 0.1)
    heat[1:3, 1:4], heat[3, 4], heat[6, 6], heat[5, 0] = 0.9, 0.6, 0.8, 0.4
    return heat


def test_the_specified_example() -> None:
    found = ComponentsDetector().boxes(example())
    assert found.boxes.tolist() == [[1, 1, 5, 4], [6, 6, 7, 7]]  # (3, 4) touches the first at a corner
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.phrases == ("anomaly", "anomaly") and found.valid.all()


def test_flat_maps_have_no_boxes() -> None:
    found = ComponentsDetector().boxes(torch.full((8, 8), 0.5) + torch.linspace(0, 9e-4, 64).view(8, 8))
    assert found.boxes.shape == (0, 4) and len(found) == 0


def test_small_and_large_regions_are_dropped() -> None:
    heat = torch.zeros(100, 100)
    heat[10:12, 10:12] = 1.0  # 4 pixels of at least 5
    heat[50:54, 50:54] = 1.0
    assert ComponentsDetector().boxes(heat).boxes.tolist() == [[50, 50, 54, 54]]
    heat[:, :71] = 1.0  # its box covers 71 of 100 columns
    assert len(ComponentsDetector().boxes(heat)) == 0


def test_the_best_are_kept() -> None:
    heat = torch.zeros(20, 20)
    for i in range(8):
        heat[2 * i, 2 * i], heat[2 * i, 2 * i + 1] = 0.6 + 0.05 * i, 0.6 + 0.05 * i
    found = ComponentsDetector(most=3).boxes(heat)
    assert found.scores.tolist() == pytest.approx([0.95, 0.9, 0.85])


def test_wrong_options() -> None:
    with pytest.raises(UserError, match="level 0"):
        ComponentsDetector(level=0)
