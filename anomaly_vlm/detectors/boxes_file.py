"""`detector=file`: boxes that were made elsewhere, by any detector or by hand, in one JSON file.

    {"format": 1, "size": "relative" | "pixels",
     "images": {"folder/name.png": {"boxes": [[x0, y0, x1, y1], ...], "scores": [...], "phrases": [...]}}}

Names are the ends of image paths; `pixels` are the image's own; scores default to 1, phrases to `anomaly`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal

import torch

from anomaly_vlm.detectors.base import Detector, Picture
from anomaly_vlm.detectors.boxes import Queries
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import expanded, read_json


class FileDetector(Detector):
    """Boxes from a JSON file.

    Args:
        path: The file.
        missing: An image without an entry is an `error`, or has no boxes (`none`).

    Raises:
        UserError: No such file, or one of another form.
    """

    name: ClassVar[str] = "file"
    replaces: ClassVar[bool] = True
    reads_captions: ClassVar[bool] = False

    def __init__(self, path: str | None, missing: Literal["error", "none"] = "error") -> None:
        super().__init__()
        if missing not in ("error", "none"):
            raise unknown_choice("detector.missing", str(missing), ["error", "none"])
        if path is None:
            raise UserError("detector=file needs the file with the boxes: set detector.path=FILE")
        self.path, self.missing = expanded(path), missing
        self.relative, self.images = read_boxes(self.path)

    def look(self, pictures: Sequence[Picture], captions: Sequence[str]) -> list[Queries]:
        """The stored boxes of each picture; captions are not read."""
        return [self._one(picture) for picture in pictures]

    def identity(self) -> dict[str, Any]:
        """What the answers depend on: the file."""
        return {"detector": self.name, "path": str(self.path)}

    def _one(self, picture: Picture) -> Queries:
        entry = self._entry(picture.name)
        if entry is None:
            if self.missing == "error":
                raise UserError(
                    f"boxes file '{self.path}' has no entry for image '{picture.name}': add one (empty boxes for none),"
                    " or set detector.missing=none"
                )
            entry = {"boxes": []}
        boxes = torch.tensor(entry["boxes"], dtype=torch.float32).view(-1, 4)
        if not self.relative and len(boxes):
            width, height = picture.pixels().size
            boxes = boxes / boxes.new_tensor([width, height, width, height])
        centred = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
        scores = torch.tensor(entry.get("scores", [1.0] * len(boxes)), dtype=torch.float32)
        return Queries(centred, scores, phrases=tuple(entry.get("phrases", ["anomaly"] * len(boxes))))

    def _entry(self, name: str) -> Mapping[str, Any] | None:
        """The entry whose name is the longest end of the image's path."""
        segments = PurePath(name).parts
        for start in range(len(segments)):
            if (entry := self.images.get("/".join(segments[start:]))) is not None:
                return entry
        return self.images.get(name)


def read_boxes(path: Path) -> tuple[bool, dict[str, Mapping[str, Any]]]:
    """Whether boxes are relative, and the entries by image.

    Raises:
        UserError: See `FileDetector`.
    """
    if not path.is_file():
        raise UserError(f"boxes file '{path}' does not exist: give an existing JSON file with detector.path=FILE")
    content = read_json(path, what="file of boxes")
    if not isinstance(content, dict) or content.get("format") != 1 or content.get("size") not in ("relative", "pixels"):
        raise UserError(
            f"boxes file '{path}': expected {{'format': 1, 'size': 'relative' or 'pixels', 'images': {{...}}}}"
        )
    images = content.get("images")
    if not isinstance(images, dict):
        raise UserError(f"boxes file '{path}' has no 'images': expected an object, image to boxes")
    for name, entry in images.items():
        if reason := _fault(entry):
            raise UserError(f"boxes file '{path}', image '{name}': {reason}")
    return content["size"] == "relative", images


def _fault(entry: Any) -> str:
    """What is wrong with an entry, or ''."""
    boxes = entry.get("boxes") if isinstance(entry, dict) else None
    if not isinstance(boxes, list):
        return "no list 'boxes': expected [[x0, y0, x1, y1], ...]"
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(_number(value) for value in box)
        if not numbers or box[2] < box[0] or box[3] < box[1]:
            return f"box {box}: expected four finite numbers x0 <= x1, y0 <= y1, in the order [x0, y0, x1, y1]"
    for key, right in (("scores", _number), ("phrases", lambda value: isinstance(value, str))):
        values = entry.get(key, [])
        if key in entry and (not isinstance(values, list) or len(values) != len(boxes) or not all(map(right, values))):
            return f"'{key}' does not fit the {len(boxes)} boxes: expected one of each"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
