"""Data sets of Hugging Face as they lie on disk: Parquet files of the hub, `save_to_disk`, folders with a metadata file.

Images inside tables are unpacked once into a cache, a file each, so that everything else meets files.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomaly_vlm.caching.folders import cache_folder
from anomaly_vlm.data.readers.index import named, once, tell_odd_masks
from anomaly_vlm.data.readers.listing import folders, split_by_name
from anomaly_vlm.data.readers.parquet import Table
from anomaly_vlm.data.types import Sample
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import read_json, whole_bytes, write_text

log = logging.getLogger("anomaly_vlm")
NORMAL = ("good", "normal", "ok", "0", "false", "no")
UNKNOWN = ("", "-1", "nan", "none", "null", "na", "n/a", "<na>")  # labels that nobody has given, in any case
METADATA = ("metadata.jsonl", "metadata.csv")
INDEX = "index.json"
Row = tuple[str, str | None, Any, str | None]  # image file, mask file, value of the label, value of the category


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; `mask` and `category` where they are there."""

    image: str
    label: str
    mask: str
    category: str | None


def read_hugging_face(
    root: Path,
    *,
    image: str = "image",
    label: str = "label",
    mask: str = "mask",
    category: str = "object",
    category_column: str | None = None,
    normal: Sequence[str] = NORMAL,
) -> list[Sample]:
    """`[data/]SPLIT-*.parquet`, what `save_to_disk` wrote, or `[SPLIT/]metadata.jsonl` (or `.csv`) beside images.

    Splits are told by the names of files and folders; what names none is tested on. An anomalous row without a mask has its
    label alone.

    Args:
        root: Folder of the set.
        image: Column of the images; in a metadata file `file_name`, or `IMAGE_file_name`.
        label: Column of the labels: class labels, words, whole numbers or truth values; -1, null, NaN, an empty cell and the
            words None, null and NA are unknown.
        mask: Column of the masks, if there is one; in a metadata file `MASK_file_name`.
        category: Word of what the images show.
        category_column: Column that names it in each row; None for none.
        normal: Labels that are normal, in any case; any other is a kind of defect.

    Raises:
        UserError: A column or a file that is not there, pyarrow is not installed, a damaged table, or a label of another
            kind.
    """
    columns = Columns(image, label, mask, category_column)
    names = {str(word).strip().lower() for word in normal}
    samples: list[Sample] = []
    for path in _tables(root):
        rows, classes = _listed(root, path, columns) if path.name in METADATA else _unpacked(root, path, columns)
        found, of_normal = [], []
        for number, (picture, region, value, word) in enumerate(rows):
            kind = _label_name(value, classes, names, f"row {number} of '{path}'")
            known = None if kind is None else int(kind.lower() not in names)
            of_normal += [region] if known == 0 and region is not None else []
            found.append(
                Sample(
                    path=picture,
                    category=category if word is None else word,
                    label=known,
                    masks=(region,) if region is not None and known else (),
                    defect=str(kind) if known else "" if known is None else "good",
                    split=split_by_name(path.relative_to(root)),
                    kind="none" if known is None else "image" if known and region is None else "mask",
                )
            )
        tell_odd_masks(found, of_normal, path)
        samples += once(found, path)
    if not any(sample.masks for sample in samples):
        return [one if one.kind == "none" else replace(one, kind="image") for one in samples]
    return samples


def _tables(root: Path) -> list[Path]:
    """The tables below a folder: metadata files, else Arrow files, else Parquet files."""
    places = [root, *folders(root), *(inner for folder in folders(root) for inner in folders(folder))]
    for pattern in (*METADATA, "data-*.arrow", "*.parquet"):
        if found := [path for place in places for path in sorted(place.glob(pattern))]:
            return found
    return []


def _label_name(value: Any, classes: list[str] | None, normal: set[str], where: str) -> str | None:
    """The label in words; None where it is unknown."""
    value = _label(value, where)
    if value is None:
        return None
    if classes is not None and isinstance(value, int) and not isinstance(value, bool) and value != -1:
        if not 0 <= value < len(classes):
            raise UserError(f"{where} has the label {value}, but there are {len(classes)} classes: mend the table")
        return str(classes[value]).strip()
    word = str(value)
    return None if word.lower() in UNKNOWN and word.lower() not in normal else word


def _label(value: Any, where: str) -> bool | int | str | None:
    """A label without the marks of the format that it was stored in; None where there is none.

    Raises:
        UserError: It is neither a word, nor a whole number, nor a truth value.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, str):
        word = value.strip()
        whole = re.fullmatch(r"(-?\d+)\.0*", word)  # as tables write whole numbers of a column with gaps
        return word if whole is None else whole[1]
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        return None if math.isnan(value) else int(value)
    if value is not None and not isinstance(value, int):
        raise UserError(
            f"{where} has the label {str(value)[:40]!r} ({type(value).__name__}): expected a word, a whole number or a truth"
            " value; name the column with reader.label"
        )
    return value


def _category(value: Any) -> str | None:
    if value is None or value != value:  # NaN
        return None
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


# ---- metadata files --------------------------------------------------------------------------------------------------


def _listed(root: Path, path: Path, columns: Columns) -> tuple[list[Row], None]:
    """The rows of `metadata.jsonl` or `metadata.csv`, whose files lie beside it."""
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
        entries = (
            [json.loads(line) for line in text if line.strip()] if path.suffix == ".jsonl" else [*csv.DictReader(text)]
        )
        rows: list[Row] = []
        for entry in entries:
            name = entry.get(f"{columns.image}_file_name") or entry["file_name"]
            region = entry.get(f"{columns.mask}_file_name")
            word = None if columns.category is None else _category(entry[columns.category])
            inside = (
                _inside(root, named(path.parent, str(name))),
                None if not region else _inside(root, named(path.parent, str(region))),
            )
            rows.append((*inside, entry[columns.label], word))
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(
            f"'{path}' is no metadata file ({type(error).__name__}: {error}): expected file_name, {columns.label} and, for"
            f" masks, {columns.mask}_file_name in each line"
        ) from error
    return rows, None


def _inside(root: Path, path: Path) -> str:
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"'{path}' lies outside '{root}': move the file")
    return str(path)


# ---- tables that hold images -----------------------------------------------------------------------------------------


def _unpacked(root: Path, path: Path, columns: Columns) -> tuple[list[Row], list[str] | None]:
    """The rows of a table, whose images are unpacked where this was not done before."""
    table = Table(path)
    facts = path.stat()
    key = repr((str(path.resolve()), facts.st_size, facts.st_mtime_ns, columns))
    place = cache_folder("unpacked") / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    classes = table.features.get(columns.label, {}).get("names")
    if (place / INDEX).is_file():
        rows = read_json(place / INDEX, what="index of unpacked images")
        return [(str(a), None if b is None else str(b), c, _category(d)) for a, b, c, d in rows], classes
    place.mkdir(parents=True, exist_ok=True)
    rows = list(_unpack(root, table, columns, place))
    write_text(place / INDEX, json.dumps(rows))
    log.warning("'%s': its images are unpacked into '%s', which can be removed", path, place)
    return rows, classes


def _unpack(root: Path, table: Table, columns: Columns, place: Path) -> Iterator[Row]:
    wanted = [columns.image, columns.label]
    wanted += [name for name in (columns.mask,) if name in table.columns]
    wanted += [] if columns.category is None else [columns.category]
    for number, row in enumerate(table.rows(wanted)):
        picture = _file_of(root, table.path, row[columns.image], place, f"{number:06}")
        if picture is None:
            raise UserError(f"row {number} of '{table.path}' has no {columns.image}: name the column with reader.image")
        region = _file_of(root, table.path, row.get(columns.mask), place, f"{number:06}_mask")
        label = _label(row[columns.label], f"row {number} of '{table.path}'")
        yield picture, region, label, None if columns.category is None else _category(row[columns.category])


def _file_of(root: Path, table: Path, cell: Any, place: Path, name: str) -> str | None:
    """The file of an image in a table: its bytes, written; or the one that it names. None where it is null."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, str):
        content, path = None, content
    if content is None:
        if not path:
            return None
        beside = table.parent / str(path)
        return _inside(root, beside if beside.is_file() else root / str(path))
    if not isinstance(content, bytes):
        raise UserError(
            f"'{table}' has {type(content).__name__} in place of an image: name the columns with reader.image"
        )
    known = re.sub(r"[^\w.-]", "_", Path(str(path or "")).name)[-60:]
    target = place / (f"{name}_{known}" if known else f"{name}.png")
    with whole_bytes(target, durable=False) as file:
        file.write(content)
    return str(target)
