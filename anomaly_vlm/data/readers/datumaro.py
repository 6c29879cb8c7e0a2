"""Datumaro's own JSON, as Datumaro, CVAT and OpenVINO's tools write it: polygons, masks of run lengths, boxes, labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anomaly_vlm.data.checks import checked_size
from anomaly_vlm.data.readers.index import NORMAL, named, once
from anomaly_vlm.data.readers.listing import split_by_name
from anomaly_vlm.data.readers.regions import NO_REGION, Annotated, Region, Size, regions_of, tell_empty, wrong_region
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json

log = logging.getLogger("anomaly_vlm")
REGIONS = ("polygon", "mask", "bbox")


def read_datumaro(
    root: Path, *, annotations: str = "annotations", category: str = "object", defects: Iterable[str] | None = None
) -> list[Sample]:
    """`annotations/SUBSET.json` and `images/[SUBSET/]NAME`; anomalous where an item has an annotation of a defect.

    An anomalous item with a label alone has no mask, so that its pixels do not count.

    Args:
        root: Folder of the export.
        annotations: Name of the folder with the JSON files.
        category: Word of what the images show.
        defects: Labels that are defects; None for all but those called `good`, `normal` or `ok`.

    Raises:
        UserError: No such JSON, an unknown label, an image that is not there, or an annotation that means no region.
    """
    samples: list[Sample] = []
    wanted = None if defects is None else {str(name) for name in defects}
    for path in sorted((root / annotations).glob("*.json")):
        content = read_json(path, what="Datumaro file")
        try:
            names = [str(label["name"]) for label in content["categories"]["label"]["labels"]]
            chosen = {name for name in names if name.lower() not in NORMAL} if wanted is None else wanted
            if unknown := sorted(chosen - set(names)):
                raise UserError(
                    f"defects names {unknown[0]}, which '{path}' does not have: choose of {', '.join(names)}"
                )
            found = [_sample(root, path, item, names, chosen, category) for item in content["items"]]
            _tell_left_out(path, content["items"])
            tell_empty(found, path)
            samples += once(found, path)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"'{path}' is no Datumaro file ({type(error).__name__}: {error}): expected categories.label.labels and items"
                " with image and annotations"
            ) from error
    return samples


def _sample(root: Path, path: Path, item: dict[str, Any], names: list[str], chosen: set[str], category: str) -> Sample:
    media = item.get("image") or item.get("media") or {}
    image = _image(root, path.stem, str(media.get("path") or item["id"]))
    marked = [
        one for one in item["annotations"] if one.get("label_id") is not None and names[one["label_id"]] in chosen
    ]
    height, width = (int(side or 0) for side in media.get("size") or (0, 0))
    size = (width, height) if min(width, height) > 0 else checked_size(str(image))
    try:
        regions = [region for one in marked for region in _regions(one, size)]
    except NO_REGION as error:
        raise wrong_region(path, str(image), error) from error
    return Sample(
        path=str(image),
        category=category,
        label=int(bool(marked)),
        defect=names[marked[0]["label_id"]] if marked else "good",
        split=split_by_name(Path(path.name)),
        kind="image" if marked and not regions else "mask",
        drawing=Annotated(str(image), size, tuple(regions)),
    )


def _regions(annotation: dict[str, Any], size: Size) -> list[Region]:
    kind = annotation["type"]
    if kind == "polygon":
        return regions_of([annotation["points"]], None, size)
    if kind == "mask":
        return regions_of(annotation["rle"], None, size)
    return regions_of(None, annotation["bbox"], size) if kind == "bbox" else []


def _tell_left_out(path: Path, items: list[dict[str, Any]]) -> None:
    """Says which kinds of annotations mark no region."""
    kinds = Counter(str(one["type"]) for item in items for one in item["annotations"])
    for kind in (*REGIONS, "label"):
        kinds.pop(kind, None)
    if kinds:
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        log.warning("'%s': annotations without a region that counts: %s; their labels count alone", path, shown)


def _image(root: Path, subset: str, name: str) -> Path:
    names = (name,) if Path(name).suffix else tuple(name + suffix for suffix in (".jpg", ".png", ".jpeg", ".bmp"))
    places = (root / "images" / subset, root / "images", root)
    for place in places:
        for one in names:
            if (image := named(place, one)).is_file():
                return image
    raise UserError(f"image '{name}' is not in '{places[0]}' or '{places[1]}': export the images with the annotations")
