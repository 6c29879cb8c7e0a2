"""Scores of good parts by a method that has not learned from them: what a threshold is chosen on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from anomaly_vlm.data import Sample, collate
from anomaly_vlm.methods.base.few_shot import FewShot
from anomaly_vlm.methods.shared.category_memory import Encoded, MemoryMethod
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.counting import with_progress
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.detect import detect
from anomaly_vlm.runs.scoring import predictions

FOLDS = 20  # of leaving out: of up to 20 parts each is left out alone


@dataclass(frozen=True)
class PartScore:
    """What a method makes of one image.

    Attributes:
        path: Image file.
        score: Image score.
        peak: Largest map value.
        usual: The map's 99th percentile.
    """

    path: str
    score: float
    peak: float
    usual: float


def score_samples(run: Run, samples: Sequence[Sample]) -> list[PartScore]:
    """Scores images with the method as it is, as `predict` does."""
    if not samples:
        return []
    detect(run.method, samples)
    dataset = run.data.dataset_of(samples)
    loader: Any = DataLoader(dataset, batch_size=run.cfg.eval_batch_size, collate_fn=collate)
    found = [prediction for _, prediction in predictions(run.cfg, run.method, loader)]
    scores = torch.cat([one.score.cpu() for one in found]).tolist()
    maps = [image.flatten().cpu() for one in found for image in one.map]
    return [
        PartScore(sample.path, score, float(heat.max()), float(heat.kthvalue(max(1, round(0.99 * len(heat)))).values))
        for sample, score, heat in zip(samples, scores, maps, strict=True)
    ]


def left_out(run: Run, memory: Sequence[Sample], samples: Sequence[Sample]) -> list[PartScore]:
    """Scores each part with a memory that excludes it; with more than `FOLDS` parts, in folds.

    Args:
        run: Its data and its method, which is left with the whole memory.
        memory: The parts that the method compares with.
        samples: Those of them that are scored.
    """
    if not samples or not isinstance(run.method, FewShot):
        return []
    found: dict[str, PartScore] = {}
    folds = [samples[i :: min(FOLDS, len(samples))] for i in range(min(FOLDS, len(samples)))]
    say(f"calibration: {len(samples)} good parts, each scored with a memory without it")
    encoded = _encoded(run, memory)
    for fold in with_progress(folds, len(samples), what="calibrating"):
        without = {sample.path for sample in fold}
        _fit_memory(run, memory, encoded, without=without)
        found.update({one.path: one for one in score_samples(run, fold)})
    _fit_memory(run, memory, encoded, without=())
    return [found[sample.path] for sample in samples]


def _fit_memory(
    run: Run, memory: Sequence[Sample], encoded: Mapping[str, Encoded] | None, *, without: Collection[str]
) -> None:
    """Gives the method a memory of all parts but those whose paths are in `without`."""
    if encoded is not None and isinstance(run.method, MemoryMethod):
        left = [i for i, sample in enumerate(memory) if sample.path in without]
        run.method.fit_encoded(memory[0].category, encoded, without=left)
    elif isinstance(run.method, FewShot):
        run.method.fit_references(run.data.references_of([part for part in memory if part.path not in without]))


@torch.no_grad()
def _encoded(run: Run, memory: Sequence[Sample]) -> Mapping[str, Encoded] | None:
    """The parts of the memory encoded once, for a method whose memory is made of them; None for another one."""
    if not isinstance(run.method, MemoryMethod):
        return None
    (references,) = run.data.references_of(memory)
    batch = references.batch.to(run.method.device)
    return run.method.encode_references(replace(references, batch=batch))
