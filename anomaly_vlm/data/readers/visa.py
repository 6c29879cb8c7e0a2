"""VisA (Zou et al., "SPot-the-Difference", ECCV 2022), in both layouts that are in use."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from anomaly_vlm.data.readers.index import named, once, table_text
from anomaly_vlm.data.readers.listing import child, folders
from anomaly_vlm.data.readers.mvtec_ad import read_mvtec_ad
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError, unknown_choice

SPLITS = ("1cls", "2cls_fewshot", "2cls_highshot")
COLUMNS = ("object", "split", "label", "image", "mask")


def read_visa(root: Path, *, split_csv: str = "1cls") -> list[Sample]:
    """`split_csv/SPLIT.csv` and `CAT/Data/...` (as downloaded), or `[SPLIT/]CAT/{train,test,ground_truth}` (converted).

    Args:
        root: Folder of the set.
        split_csv: `1cls` (the zero-shot protocol), `2cls_fewshot` or `2cls_highshot`.

    Raises:
        UserError: No such split, a damaged table, or the table is missing beside the downloaded layout.
    """
    if split_csv not in SPLITS:
        raise unknown_choice("split_csv", str(split_csv), SPLITS)
    table = root / "split_csv" / f"{split_csv}.csv"
    if table.is_file():
        return _read_table(root, table)
    if any((folder / "Data" / "Images").is_dir() for folder in folders(root)):
        raise UserError(
            f"VisA in '{root}' has no split_csv/{split_csv}.csv: take the folder split_csv from VisA's project (spot-diff)"
            " and put it there"
        )
    return read_mvtec_ad(child(root, split_csv) or root)


def _read_table(root: Path, table: Path) -> list[Sample]:
    rows = csv.DictReader(io.StringIO(table_text(table)))
    try:
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise UserError(
                f"'{table}' lacks the column {missing[0]}: expected {','.join(COLUMNS)}; take the original file"
            )
        return once([_sample(root, table, row, rows.line_num) for row in rows], table)
    except csv.Error as error:
        raise UserError(f"'{table}' line {rows.line_num}: {error}; take the original file") from error


def _sample(root: Path, table: Path, row: dict[str, str | None], line: int) -> Sample:
    category, split, word, image, mask = (row[name] for name in COLUMNS)
    if category is None or split is None or word is None or image is None or mask is None:
        raise UserError(f"'{table}' line {line}: fewer than {len(COLUMNS)} values; take the original file")
    if word not in ("normal", "anomaly"):
        raise UserError(f"'{table}' line {line}: label '{word}' is neither normal nor anomaly")
    label = int(word == "anomaly")
    if label and not mask:
        raise UserError(f"anomalous image '{root / image}' has no mask in '{table}': take the original file")
    return Sample(
        path=str(named(root, image)),
        category=category,
        label=label,
        masks=(str(named(root, mask)),) if label else (),
        defect="anomaly" if label else "good",
        split=split,
    )
