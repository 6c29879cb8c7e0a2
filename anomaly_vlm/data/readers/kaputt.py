"""Kaputt (Höfer et al., ICCV 2025): parcels' items in trays, damaged or not, listed in Parquet files; image labels only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from anomaly_vlm.data.readers.listing import child
from anomaly_vlm.data.readers.parquet import Table
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError, unknown_choice

View = Literal["crop", "image"]
SPLITS = {"train": "train", "validation": "val", "test": "test"}
COLUMNS = ["capture_id", "defect", "major_defect", "defect_types", "item_material"]


def read_kaputt(root: Path, *, view: View = "crop", minor: bool = True) -> list[Sample]:
    """`[datasets/]query-{train,validation,test}.parquet` beside the images that they name; the categories are materials.

    Images lie below `root`, below `query-VIEW/` (an archive each, as they are offered) or below `kaputt-release/`. The
    masks of the set outline the item and not its damage, so that they are no masks of anomalies. Its reference images
    belong to single items and are not read.

    Args:
        root: Folder of the set.
        view: `crop`: the item alone; `image`: the whole tray, 2048 x 2048.
        minor: Whether items with minor damage are taken (as anomalous); False: left out.

    Raises:
        UserError: Another view, a Parquet file that is none of Kaputt's, or images that are not there.
    """
    if view not in get_args(View):
        raise unknown_choice("reader.view", str(view), get_args(View))
    place, column = child(root, "datasets") or root, f"query_{view}"
    samples: list[Sample] = []
    for published, split in SPLITS.items():
        table = place / f"query-{published}.parquet"
        if not table.is_file():
            continue
        rows = list(Table(table).rows([*COLUMNS, column]))
        base = _base(root, view, table, rows, column)
        samples += [
            _sample(base, row, column, split) for row in rows if minor or not row["defect"] or row["major_defect"]
        ]
    return samples


def _base(root: Path, view: str, table: Path, rows: list[dict[str, Any]], column: str) -> Path:
    """The folder that the paths of a table start from."""
    bases = [root, root / f"query-{view}", root / "kaputt-release", root / "data"]
    for base in bases:
        if not rows or (base / str(rows[0][column])).is_file():
            return base
    raise UserError(
        f"image '{rows[0][column]}' of '{table}' is not below '{root}' or '{bases[1]}': unpack the images there"
        f" (reader.view={'image' if view == 'crop' else 'crop'} takes the others)"
    )


def _sample(base: Path, row: dict[str, Any], column: str, split: str) -> Sample:
    label = int(bool(row["defect"]))
    kinds = str(row["defect_types"] or "")
    return Sample(
        path=str(base / str(row[column])),
        category=str(row["item_material"] or "other"),
        label=label,
        defect=(kinds.replace(",", "+") or "damage") if label else "good",
        split=split,
        kind="image",
    )
