"""Sets without masks whose labels are in a table: HeadCT and ELPV."""

from __future__ import annotations

import csv
from pathlib import Path

from anomaly_vlm.data.readers.index import named, once, table_text
from anomaly_vlm.data.readers.listing import child, images
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError, unknown_choice

HEMORRHAGE = {0: "good", 1: "hemorrhage"}
POSITIVE = {"any": 1 / 6, "half": 0.49, "certain": 5 / 6}  # the probabilities are 0, 1/3, 2/3, 1, written with rounding


def read_headct(root: Path, *, category: str = "headct") -> list[Sample]:
    """`labels.csv` (id, hemorrhage) beside `head_ct/[head_ct/]NNN.png`; or `CAT/test/{good,DEFECT}`, the converted layout.

    Raises:
        UserError: An image that the table does not list, or a damaged table.
    """
    table = root / "labels.csv"
    if not table.is_file():
        return read_mvtec_ad(root, masks=None)
    place = child(root, "head_ct") or root
    labels: dict[int, str] = {}
    try:
        for row in list(csv.reader(table_text(table).splitlines()))[1:]:
            number, word = int(row[0]), HEMORRHAGE[int(row[1])]
            if labels.setdefault(number, word) != word:
                raise UserError(f"'{table}' lists image {number} as {labels[number]} and as {word}: keep one line")
    except (ValueError, LookupError, csv.Error) as error:
        raise UserError(f"'{table}' is damaged ({error}): expected lines 'id, 0 or 1' below a header") from error
    samples = []
    for path in images(child(place, "head_ct") or place):
        defect = labels.get(int(path.stem)) if path.stem.isdecimal() else None
        if defect is None:
            raise UserError(f"image '{path}' is not listed in '{table}': take it out, or take the original table")
        label = int(defect != "good")
        samples.append(Sample(path=str(path), category=category, label=label, defect=defect, kind="image"))
    return samples


def read_elpv(root: Path, *, positive: str = "half", exclude_uncertain: bool = False) -> list[Sample]:
    """`labels.csv` with lines `images/cellNNNN.png  probability  type`; the categories are the types, mono and poly.

    Args:
        root: Folder of the set.
        positive: Defect probability from which a cell is anomalous: `any` above 0, `half` (2/3 and 1), `certain` (1).
        exclude_uncertain: Leave out the probabilities 1/3 and 2/3.

    Raises:
        UserError: Unknown rule, or a damaged table.
    """
    if positive not in POSITIVE:
        raise unknown_choice("positive", str(positive), POSITIVE)
    table = root / "labels.csv"
    if not table.is_file():
        return []
    samples = []
    for line in table_text(table).splitlines():
        try:
            name, text, category = line.split()
            probability = float(text)
            if not 0 <= probability <= 1:
                raise ValueError("no probability")
        except ValueError as error:
            raise UserError(
                f"'{table}': line '{line}' is not 'file probability type': take the original table"
            ) from error
        if exclude_uncertain and 0.1 < probability < 0.9:
            continue
        label = int(probability > POSITIVE[positive])
        defect = "defect" if label else "good"
        samples.append(Sample(path=str(named(root, name)), category=category, label=label, defect=defect, kind="image"))
    return once(samples, table)
