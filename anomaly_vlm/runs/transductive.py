"""Before an evaluation: a transductive method takes in all test images, category by category."""

from __future__ import annotations

import time

import torch

from anomaly_vlm.data import Batch, collate
from anomaly_vlm.data.on_demand import OnDemand
from anomaly_vlm.methods.base.transductive import Transductive
from anomaly_vlm.reporting.console import say
from anomaly_vlm.runs.build import Run


def fit_test_images(run: Run, device: torch.device) -> None:
    """Hands the test images of every category to a method that is transductive.

    Each process takes in all of them, so that the numbers do not depend on how many processes there are.

    Args:
        run: Its data and its method.
        device: Where the images will be scored; the method is moved to it.
    """
    method = run.method
    if not isinstance(method, Transductive) or not method.is_transductive:
        return
    method.to(device)
    method.eval()
    by_category: dict[str, list[int]] = {}
    for position, sample in enumerate(run.data.samples("test")):
        by_category.setdefault(sample.category, []).append(position)
    method.check_test_set({category: len(positions) for category, positions in by_category.items()})
    dataset = run.data.dataset("test")

    def read(position: int) -> Batch:
        return collate([dataset[position]]).to(method.device)

    for category, positions in by_category.items():
        started = time.monotonic()
        with torch.inference_mode():
            method.fit_test_category(category, OnDemand(read, positions))
        seconds = time.monotonic() - started
        say(
            f"{category}: {len(positions):,} images taken in together ({seconds:.0f} s); scores hold for this set alone"
        )
