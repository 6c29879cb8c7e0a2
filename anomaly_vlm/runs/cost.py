"""What a method costs: parameters that learn, floating-point operations, time and memory. Part of a run's record."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.runs.build import Run

IMAGES = 5  # that are timed; as many as a transductive method wants to see together


def cost_of(run: Run, *, training_seconds: float | None) -> dict[str, Any]:
    """Measures a method on a few test images of one category, as a user would call it: nothing comes from a cache.

    Args:
        run: After its evaluation.
        training_seconds: Of the training; None where nothing was trained, or a part of it by another process.

    Returns:
        `trainable_parameters`, `gflops` and `ms_per_image` of an image on this device (with what a transductive method does
        for all of them together), `peak_memory_mb` of the process so far (of the GPU where there is one),
        `training_seconds`.
    """
    method = run.method
    cache = method.token_cache if isinstance(method, FrozenTokens) else None
    samples = run.data.samples("test")
    category = samples[0].category
    images = [read_sample(sample)[0] for sample in [one for one in samples if one.category == category][:IMAGES]]
    if isinstance(method, FrozenTokens):
        method.token_cache = None
    try:
        _predict(run, images, category)  # texts and kernels are ready after the first call
        started = time.perf_counter()
        _predict(run, images, category)
        seconds = time.perf_counter() - started
        with _without_gradients(method), FlopCounterMode(display=False) as counter:
            _predict(run, images, category)
    finally:
        if isinstance(method, FrozenTokens):
            method.token_cache = cache
    return {
        "trainable_parameters": sum(one.numel() for one in method.learnable().values()),
        "gflops": counter.get_total_flops() / len(images) / 1e9,
        "ms_per_image": 1000 * seconds / len(images),
        "peak_memory_mb": peak_memory_mb(),
        "training_seconds": training_seconds,
    }


def peak_memory_mb() -> float:
    """The largest memory of this process: of its GPU where it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


@contextmanager
def _without_gradients(method: AnomalyMethod) -> Iterator[None]:
    """The counter hooks into the graph of what has gradients, of which there is none in a prediction."""
    learning = [one for one in method.parameters() if one.requires_grad]
    for one in learning:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in learning:
            one.requires_grad_(True)


def _predict(run: Run, images: list[Image.Image], category: str) -> None:
    together = run.method.is_transductive
    for part in [images] if together else [[image] for image in images]:
        run.method(part, category=category)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
