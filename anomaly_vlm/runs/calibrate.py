"""Calls `calibrate` of methods that set score constants from the training images once training has ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import lightning as L
from torch.utils.data import DataLoader

from anomaly_vlm.data import Batch, collate
from anomaly_vlm.data.dataset import AnomalyDataset
from anomaly_vlm.methods.base.calibrated import Calibrated
from anomaly_vlm.reporting.console import say
from anomaly_vlm.runs.build import Run


def calibrate(run: Run, trainer: L.Trainer) -> None:
    """Hands the training images, without augmentation, to a method that sets constants of its scores by them.

    Args:
        run: Its data and its method.
        trainer: The one that trained; the method is moved to its device, from which Lightning has taken it.
    """
    if not isinstance(run.method, Calibrated):
        return
    samples = run.data.samples("train")
    say(f"{len(samples):,} training images once more, for the range of the scores")
    run.method.to(trainer.strategy.root_device)
    run.method.eval()
    run.method.invalidate_caches()
    run.method.calibrate(_batches(run))


def _batches(run: Run) -> Iterator[Batch]:
    assert run.data.preprocess is not None
    dataset = AnomalyDataset(run.data.samples("train"), replace(run.data.preprocess, mask_size=None))
    loader = DataLoader(
        dataset, batch_size=run.data.eval_batch_size, num_workers=run.data.num_workers, collate_fn=collate
    )
    for batch in loader:
        yield replace(batch, unencoded=batch.unencoded.to(run.method.device))
