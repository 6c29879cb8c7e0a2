"""Before an evaluation: the detector looks at every image, with progress; what it finds waits in the method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from anomaly_vlm.data.transforms import read_sample
from anomaly_vlm.data.types import Sample
from anomaly_vlm.detectors import Detector, Picture
from anomaly_vlm.methods.base.detections import UsesDetections
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.counting import with_progress
from anomaly_vlm.runs.build import Run

CHUNK = 16  # images that the detector gets at a time


def precompute_detections(run: Run, *sides: str) -> None:
    """Fills `method.detections` for all images of these sides, where the method has a detector that looks at images."""
    detect(run.method, [sample for side in sides for sample in run.data.samples(side)])


def detect(method: AnomalyMethod, samples: Iterable[Sample]) -> None:
    """Fills `method.detections` for these images, where the method has a detector that looks at images.

    Answers that the detector has stored on disk are read; a stopped run resumes where it was.
    """
    if not isinstance(method, UsesDetections) or not isinstance(method.detector, Detector):
        return
    detector = method.detector
    todo = [
        (sample, caption)
        for sample in samples
        for caption in method.captions(sample.category)
        if (sample.path, caption) not in method.detections
    ]
    detector.check_captions([caption for _, caption in todo])
    if todo:
        cost = f" ({detector.cost()}, those kept from earlier runs apart)" if detector.cost() else ""
        images = len({sample.path for sample, _ in todo})
        asked = f"{images:,} images" if images == len(todo) else f"{len(todo):,} questions on {images:,} images"
        say(f"detections: {asked} by {detector.name}{cost}")
    for chunk in with_progress([todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)], len(todo)):
        pictures = [Picture(sample.path, _reader(sample)) for sample, _ in chunk]
        answers = detector.queries(pictures, [caption for _, caption in chunk])
        for (sample, caption), answer in zip(chunk, answers, strict=True):
            method.detections[sample.path, caption] = answer


def _reader(sample: Sample) -> Any:
    return lambda: read_sample(sample)[0]
