"""Before an evaluation: a transductive method takes in all test images, category by category."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from anomaly_vlm.data import Batch, collate
from anomaly_vlm.methods.base.transductive import Transductive
from anomaly_vlm.reporting.console import say
from anomaly_vlm.runs.build import Run


class ImagesOnDemand(Sequence[Batch]):
    """Images of a data module's test side, each read when it is asked for.

    Args:
        run: Its data and its method, whose device the images are put on.
        positions: Their positions in the data set.
    """

    def __init__(self, run: Run, positions: Sequence[int]) -> None:
        self.dataset, self.method, self.positions = run.data.dataset("test"), run.method, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        batch = collate([self.dataset[self.positions[i]]])
        return batch.to(self.method.device)


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
    for category, positions in by_category.items():
        started = time.monotonic()
        with torch.inference_mode():
            method.fit_test_category(category, ImagesOnDemand(run, positions))
        seconds = time.monotonic() - started
        say(
            f"{category}: {len(positions):,} images taken in together ({seconds:.0f} s); scores hold for this set alone"
        )
