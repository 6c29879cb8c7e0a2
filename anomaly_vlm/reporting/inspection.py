"""What a data set holds: counts beside those of its publishers, sizes, files that are wrong, images that come twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from anomaly_vlm.data.checks import FileJob, checked_size, file_job
from anomaly_vlm.data.images import ReadError, open_image
from anomaly_vlm.data.masks import describe_oddities, read_mask
from anomaly_vlm.data.overlap import content_keys
from anomaly_vlm.data.types import Sample


@dataclass
class Inspection:
    """What was found in a data set.

    Attributes:
        counts: Number of images by (category, split, defect), `good` for normal and `unlabelled` for unlabelled ones.
        by_split: Number of normal and of anomalous images of each split.
        published: The same, as the publishers state it; only the splits that they state.
        sizes: Smallest and largest (width, height) of the images that can be read; None where there are none.
        without_mask: Anomalous images without a mask, in a set with masks.
        unreadable: Messages on files that cannot be read.
        oddities: Sentences on masks that are unusual.
        repeated: Groups of images of the same content: the paths of each, `split: path`.
    """

    counts: dict[tuple[str, str, str], int]
    by_split: dict[str, tuple[int, int]]
    published: dict[str, tuple[int, int]] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None
    without_mask: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)
    repeated: list[list[str]] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every file can be read, and every split has as many images as the publishers state."""
        return not self.unreadable and all(self.by_split.get(split) == there for split, there in self.published.items())


def inspect(
    samples: Sequence[Sample],
    *,
    published: dict[str, tuple[int, int]] | None = None,
    decode: bool = False,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Looks at every file of a data set.

    Args:
        samples: Of all splits.
        published: Number of normal and of anomalous images of each split, as the publishers state it.
        decode: Whether every image and mask is decoded, and not only its header read.
        each: Called with the number of images looked at and of all, for a progress bar.
    """
    splits = sorted({sample.split for sample in samples})
    labels = {split: [sample.label for sample in samples if sample.split == split] for split in splits}
    found = Inspection(
        counts=dict(Counter((s.category, s.split, _kind(s)) for s in samples)),
        by_split={split: (values.count(0), values.count(1)) for split, values in labels.items()},
        published=dict(published or {}),
        without_mask=[s.path for s in samples if s.kind == "mask" and s.label and not s.masks and s.drawing is None],
    )
    files = [(sample, job) for sample in samples if (job := file_job(sample)) is not None]
    jobs = list(dict.fromkeys(job for _, job in files))  # samples may be parts of one image
    sizes: list[tuple[int, int]] = []
    odd: list[tuple[str, str]] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        for done, (size, errors, oddities) in enumerate(pool.map(lambda job: _look(job, decode), jobs), start=1):
            sizes += [size] if size is not None else []
            found.unreadable += errors
            odd += oddities
            each(done, len(jobs))
    if sizes:
        found.sizes = (min(sizes), max(sizes))
    found.oddities = describe_oddities(odd, sum(len(job.masks) for job in jobs))
    found.repeated = _repeated([sample for sample, _ in files])
    return found


def _kind(sample: Sample) -> str:
    return "unlabelled" if sample.label is None else sample.defect if sample.label else "good"


def _look(job: FileJob, decode: bool) -> tuple[tuple[int, int] | None, list[str], list[tuple[str, str]]]:
    size, errors, oddities = None, [], []
    try:
        size = open_image(job.image, job.max_value).size if decode else checked_size(job.image)
        if job.annotated is not None:
            job.annotated.turn(size)
    except ReadError as error:
        errors.append(str(error))
    for mask in job.masks:
        try:
            mask_size = checked_size(mask, values=False)
            if decode and not job.labels and (oddity := read_mask(mask, job.threshold).oddity):
                oddities.append((mask, oddity))
            if size is not None and mask_size != size:
                errors.append(f"mask '{mask}' is {mask_size[0]}x{mask_size[1]}, its image {size[0]}x{size[1]}")
        except ReadError as error:
            errors.append(str(error))
    return size, errors, oddities


def _repeated(samples: Sequence[Sample]) -> list[list[str]]:
    """Images of the same content: by size and beginning of the file first, then by all of it."""
    groups: dict[int, list[Sample]] = {}
    for sample, key in zip(samples, content_keys(samples), strict=True):
        groups.setdefault(key, []).append(sample)
    found = []
    for members in groups.values():
        if len(members) > 1:
            contents: dict[bytes, list[str]] = {}
            for sample in members:
                path = Path(sample.path)
                if path.is_file():
                    contents.setdefault(path.read_bytes(), []).append(f"{sample.split}: {sample.path}")
            found += [paths for paths in contents.values() if len(paths) > 1]
    return found
