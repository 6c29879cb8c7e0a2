"""`meta.json`, the index of the official repositories (APRIL-GAN, AnomalyCLIP, FAPrompt, AdaCLIP, FiLo, AnoVL)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anomaly_vlm.data.readers.index import named, once, tell_odd_masks
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json, write_text

PHASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_meta_json(root: Path, *, index: str = "meta.json") -> list[Sample]:
    """`{PHASE: {CATEGORY: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}` in `root`, or the file itself.

    Phases count in any case; paths are relative to the index or absolute; `mask_path` is empty for normal images (a list
    where an image has several masks). A category without any mask has image labels only.

    Raises:
        UserError: No such JSON, or an anomalous image without mask in a category with masks.
    """
    path = root if root.is_file() else root / index
    if not path.is_file():
        return []
    content = read_json(path, what="index")
    try:
        listed = [
            (PHASES[phase.lower()], entry)
            for phase, categories in content.items()
            for entries in categories.values()
            for entry in entries
        ]
        with_masks = {entry["cls_name"] for _, entry in listed if entry["mask_path"]}
        samples = [_sample(path, split, entry, entry["cls_name"] in with_masks) for split, entry in listed]
        of_normal = [
            mask
            for sample, (_, entry) in zip(samples, listed, strict=True)
            if sample.label == 0
            for mask in _masks(path, entry)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{path}' is no index ({type(error).__name__}: {error}): expected phases train/test, in them categories, in"
            " them entries with img_path, mask_path, cls_name, specie_name, anomaly"
        ) from error
    tell_odd_masks(samples, of_normal, path)
    return once(samples, path)


def _sample(path: Path, split: str, entry: dict[str, Any], has_masks: bool) -> Sample:
    image, label = named(path.parent, entry["img_path"]), entry["anomaly"]
    if label not in (0, 1, "0", "1"):
        raise ValueError(f"anomaly is {label!r}, expected 0 or 1")
    label = int(label)
    masks = _masks(path, entry)
    if label and has_masks and not masks:
        raise UserError(
            f"anomalous image '{image}' has no mask_path in '{path}', though others have: add it, or take the entry out"
        )
    return Sample(
        path=str(image),
        category=str(entry["cls_name"]),
        label=label,
        masks=masks if label else (),
        defect=str(entry.get("specie_name") or "anomaly") if label else "good",
        split=split,
        kind="mask" if has_masks else "image",
    )


def _masks(path: Path, entry: dict[str, Any]) -> tuple[str, ...]:
    found = entry["mask_path"] or []
    return tuple(str(named(path.parent, mask)) for mask in ([found] if isinstance(found, str) else found))


def write_index(samples: Sequence[Sample], path: Path) -> None:
    """Writes the index of `samples`; paths relative to its folder where they lie inside it, else absolute.

    Raises:
        UserError: Drawn or unlabelled samples, which an index cannot hold, or a file that cannot be written.
    """
    content: dict[str, dict[str, list[dict[str, Any]]]] = {"train": {}, "test": {}}
    base = path.resolve().parent
    for sample in samples:
        if sample.drawing is not None or sample.label is None:
            lacks = "file" if sample.drawing is not None else "label"
            raise UserError(
                f"sample '{sample.path}' has no {lacks}: an index lists labelled image files; choose such a data set"
            )
        masks = [_relative(mask, base) for mask in sample.masks]
        entry = {
            "img_path": _relative(sample.path, base),
            "mask_path": masks if len(masks) > 1 else "".join(masks),
            "cls_name": sample.category,
            "specie_name": sample.defect,
            "anomaly": sample.label,
        }
        phase = "validation" if sample.split == "val" else sample.split
        content.setdefault(phase, {}).setdefault(sample.category, []).append(entry)
    try:
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"index '{path}' cannot be written ({error.strerror}): give another file with index=FILE"
        ) from error


def _relative(path: str, base: Path) -> str:
    absolute = Path(path).absolute()
    for candidate in (absolute, absolute.resolve()):
        if candidate.is_relative_to(base):
            return candidate.relative_to(base).as_posix()
    return absolute.as_posix()
