"""Scores and maps of images, batch by batch, without a trainer: what `predict` and the calibration of `fit` share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch.utils.data import DataLoader

from anomaly_vlm.data.dataset import Item
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.devices import device_of, precision_of


def predictions(cfg: DictConfig, method: AnomalyMethod, loader: DataLoader[Item]) -> Iterator[tuple[Batch, Prediction]]:
    """Predicts every batch of a loader on the device and in the precision that the configuration says.

    Args:
        cfg: The run's configuration.
        method: It is moved to the device, and there it stays.
        loader: Batches of images.

    Yields:
        Each batch with its prediction.

    Raises:
        UserError: A device or a precision that is not there, or a score that is no finite number.
        Stopped: By a signal, between two batches.
    """
    device = device_of(cfg)
    dtype, precision = precision_of(cfg, device)
    method.to(device=device, dtype=dtype).eval()
    method.invalidate_caches()
    for batch in loader:
        stopping.check()
        with torch.inference_mode(), precision:
            moved = batch.to(device)
            moved.unencoded = moved.unencoded.to(dtype)
            prediction = method.predict(moved).checked(moved)
        yield moved, prediction
    stopping.check()
