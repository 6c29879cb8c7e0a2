"""Sample index, data sets, transforms, data module.

A data set is a source: a config node (`conf/source/NAME.yaml`) whose `samples(side)` lists the images. The data module
turns samples into batches, with CLIP's own transform and an order that is a function of (seed, epoch).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from anomaly_vlm.data.anomaly_data import AnomalyData
from anomaly_vlm.data.dataset import AnomalyDataset, Item, collate
from anomaly_vlm.data.own_images import own_images
from anomaly_vlm.data.source import FileSource, JointSource, Source
from anomaly_vlm.data.types import Batch, Drawing, Drawn, Preprocess, References, Sample

if TYPE_CHECKING:
    from anomaly_vlm.data.datamodule import AnomalyDataModule

__all__ = [
    "AnomalyData",
    "AnomalyDataModule",
    "AnomalyDataset",
    "Batch",
    "Drawing",
    "Drawn",
    "FileSource",
    "Item",
    "JointSource",
    "Preprocess",
    "References",
    "Sample",
    "Source",
    "collate",
    "own_images",
]


def __getattr__(name: str) -> Any:
    if name == "AnomalyDataModule":  # imports Lightning, which a prediction does without
        return importlib.import_module("anomaly_vlm.data.datamodule").AnomalyDataModule
    raise AttributeError(f"module 'anomaly_vlm.data' has no attribute '{name}'")
