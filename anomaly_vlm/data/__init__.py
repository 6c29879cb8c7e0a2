"""Sample index, data sets, transforms, data module.

A data set is a source: a config node (`conf/source/NAME.yaml`) whose `samples(side)` lists the images. The data module
turns samples into batches, with CLIP's own transform and an order that is a function of (seed, epoch).
"""

from anomaly_vlm.data.datamodule import AnomalyDataModule
from anomaly_vlm.data.dataset import AnomalyDataset, Item, collate
from anomaly_vlm.data.own_images import own_images
from anomaly_vlm.data.source import FileSource, JointSource, Source
from anomaly_vlm.data.types import Batch, Drawing, Drawn, Preprocess, References, Sample

__all__ = [
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
