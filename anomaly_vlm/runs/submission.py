"""What MVTec AD 2's evaluation server takes: maps of the private test images, and the same above a threshold.

The server has the labels. It wants `anomaly_images/CATEGORY/SPLIT/STEM.tiff`, one float16 channel at the image's own size,
and may be given `anomaly_images_thresholded/CATEGORY/SPLIT/STEM.png` with 0 and 255 (Heckler-Kram et al., arXiv 2503.21622).
The threshold of a category is that of its authors' baseline: mean plus three standard deviations of the map values on the
good validation images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from torch.nn import functional as F

from anomaly_vlm.data.readers.listing import child, folders, images
from anomaly_vlm.data.source import FileSource
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import whole_bytes
from anomaly_vlm.reporting.console import say
from anomaly_vlm.reporting.counting import with_progress
from anomaly_vlm.runs.build import build
from anomaly_vlm.runs.checkpoints import Checkpoint
from anomaly_vlm.runs.detect import precompute_detections
from anomaly_vlm.runs.devices import device_of
from anomaly_vlm.runs.scoring import predictions
from anomaly_vlm.runs.transductive import fit_test_images

PRIVATE = ("test_private", "test_private_mixed")
VALIDATION = "validation"
SIGMAS = 3.0  # above the mean of the good validation images
HALF_MAX = float(np.finfo(np.float16).max)


class PrivateImages:
    """MVTec AD 2's private test images as a test set: in each category the good validation images come first.

    Args:
        root: Folder of the set.

    Raises:
        UserError: There is no category with private images, or one without good validation images.
    """

    name = "mvtec_ad2"

    def __init__(self, root: Path) -> None:
        found = private_images(root)
        self._files = FileSource(
            name=self.name, root=root, reader=lambda _: found, layout="CATEGORY/SPLIT", split="all"
        )

    def samples(self, side: str) -> list[Sample]:
        """The images, whatever the side."""
        return sorted(self._files.samples(side), key=lambda s: (s.category, s.split != VALIDATION, s.path))

    def references(self) -> list[Sample]:
        """None: a checkpoint brings its own."""
        return []


class Spread:
    """Mean and standard deviation of values that come in parts."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Takes values in."""
        whole = values.astype(np.float64)
        self.count, self.total = self.count + whole.size, self.total + float(whole.sum())
        self.squares += float(np.square(whole).sum())

    def above(self, sigmas: float) -> float:
        """The mean plus so many standard deviations."""
        mean = self.total / self.count
        return mean + sigmas * math.sqrt(max(0.0, self.squares / self.count - mean**2))


def private_images(root: Path) -> list[Sample]:
    """The images of a submission, category by category: the good validation images, then those of the private splits.

    Args:
        root: Folder of MVTec AD 2.

    Raises:
        UserError: There is no category with private images, or one without good validation images.
    """
    found: list[Sample] = []
    for category in folders(root):
        private = [(split, path) for split in PRIVATE for path in images(child(category, split) or category / split)]
        if not private:
            continue
        place = child(category, VALIDATION) or category / VALIDATION
        good = images(child(place, "good") or place / "good")
        if not good:
            raise UserError(f"'{place}' has no folder 'good' with images: the threshold of a category comes from these")
        found += [Sample(str(path), category.name, None, kind="none", split=VALIDATION) for path in good]
        found += [Sample(str(path), category.name, None, kind="none", split=split) for split, path in private]
    if not found:
        raise UserError(
            f"'{root}' has no CATEGORY/{PRIVATE[0]} with images: give the folder of MVTec AD 2, as it is published"
        )
    return found


def write_submission(cfg: DictConfig, root: Path, folder: Path, checkpoint: Checkpoint | None) -> dict[str, float]:
    """Scores the private images and writes what the server takes.

    Args:
        cfg: The composed configuration.
        root: Folder of MVTec AD 2.
        folder: Existing folder of the submission.
        checkpoint: Learned weights; None for a method that needs no training.

    Returns:
        The threshold of each category.

    Raises:
        UserError: A missing package, images that are missing, or a method that scores nothing without a checkpoint.
    """
    _tifffile()
    run = build(cfg, sides=("test",), test=PrivateImages(root), with_trainer=False)
    if checkpoint is not None:
        checkpoint.load_into(run.method)
    elif run.method.learnable():
        raise UserError(f"{cfg.name} scores with what it has learned, and no checkpoint is given: add ckpt=FILE")
    ordered = run.data.samples("test")
    say(f"{run.facts['method']} on {run.facts['backbone']}: {len(ordered):,} images of {root}")
    precompute_detections(run, "test")
    fit_test_images(run, device_of(cfg))
    spreads: dict[str, Spread] = {}
    for index, heat in _maps(run, cfg):
        sample = ordered[index]
        spread = spreads.setdefault(sample.category, Spread())
        if sample.split == VALIDATION:
            spread.add(heat)
            continue
        place = Path(sample.category, sample.split, Path(sample.path).stem)
        write_map(folder / "anomaly_images" / place.with_suffix(".tiff"), heat)
        write_mask(folder / "anomaly_images_thresholded" / place.with_suffix(".png"), heat > spread.above(SIGMAS))
    return {category: spread.above(SIGMAS) for category, spread in spreads.items()}


def _maps(run: Any, cfg: DictConfig) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each image and its map, float32 at the image's own size, in the order of the data set."""
    dataset = run.data.dataset("test")
    batches = predictions(cfg, run.method, run.data.predict_dataloader())
    for batch, prediction in with_progress(
        batches, len(dataset), what="predicting", size=lambda pair: len(pair[0]), kind=cfg.callbacks.progress
    ):
        for index, heat in zip(batch.index.tolist(), prediction.map.float().cpu(), strict=True):
            width, height = dataset.own_size(index)
            whole = F.interpolate(heat[None, None], size=(height, width), mode="bilinear", align_corners=False)
            yield index, whole[0, 0].numpy()


def write_map(path: Path, heat: np.ndarray) -> None:
    """Writes a map `[H, W]` as a TIFF of one float16 channel; values beyond float16 are cut to its largest."""
    buffer = io.BytesIO()
    half = np.clip(heat, -HALF_MAX, HALF_MAX).astype(np.float16)
    _tifffile().imwrite(buffer, half, compression="zlib", photometric="minisblack")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_bytes(path, durable=False) as file:
        file.write(buffer.getvalue())


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes a mask `[H, W]` as a PNG of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_bytes(path, durable=False) as file:
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            "a submission needs tifffile, which writes 16-bit float TIFFs: make setup EXTRAS=data"
        ) from error
    return tifffile
