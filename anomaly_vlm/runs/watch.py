"""Scoring the images of a folder as they arrive."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from anomaly_vlm.data.images import ReadError
from anomaly_vlm.data.readers.listing import images
from anomaly_vlm.data.readers.mask_files import without_masks
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import FileState
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.names import csv_cell
from anomaly_vlm.reporting.console import say

COLUMNS = {
    "scores.csv": ("time", "path", "score", "percentile", "decision"),
    "regions.csv": ("path", "left", "top", "right", "bottom", "area", "peak"),
    "unreadable.csv": ("time", "path", "reason"),
}


class Arrivals:
    """The image files of a folder that are new, or have changed, since they were last handed out; masks beside them are not.

    A file counts once two looks in a row find it the same, so that one that is still being copied is left alone. Looks
    are used in place of events of the file system, which network drives do not send.

    Args:
        folder: Where images arrive, in sub-folders or not.
        done: Files, by their cells in a table, that need not be handed out unless they change after the given time in
            nanoseconds.
    """

    def __init__(self, folder: Path, done: dict[str, int] | None = None) -> None:
        self.folder, self._done = folder, done or {}
        self._waiting: dict[Path, FileState] = {}
        self._handed: dict[Path, FileState] = {}

    def look(self) -> list[Path]:
        """Looks once; returns the files that are ready.

        Raises:
            UserError: The folder is gone.
        """
        if not self.folder.is_dir():
            raise UserError(f"'{self.folder}': no such folder: give one that images arrive in, with images=FOLDER")
        before, self._waiting, ready = self._waiting, {}, []
        for path in without_masks(images(self.folder, deep=True)):
            try:
                status = path.stat()
            except OSError:  # taken away between listing and look
                continue
            state = (status.st_size, status.st_mtime_ns)
            if self._handed.get(path) == state or state[1] <= self._done.get(csv_cell(path), -1):
                continue
            if before.get(path) == state:
                self._handed[path] = state
                ready.append(path)
            else:
                self._waiting[path] = state
        return ready


def watch(
    method: AnomalyMethod, folder: Path, output: Path, *, category: str, every: float = 1.0, looks: int | None = None
) -> int:
    """Scores images as they arrive and appends a row for each; continues where tables of an earlier watch end.

    Args:
        method: With learned weights and, where it has one, a threshold.
        folder: Where images arrive.
        output: Existing folder for `scores.csv`, `regions.csv` and `unreadable.csv`.
        category: What the images show.
        every: Seconds between two looks.
        looks: How often to look; None for ever.

    Returns:
        The number of images that were scored.

    Raises:
        UserError: The folder is gone, or the method's scores depend on the other images.
    """
    check_single_images(method, "arrive")
    arrivals, scored = Arrivals(folder, _done(output)), 0
    for name, columns in COLUMNS.items():
        if not (output / name).is_file():
            _append(output / name, [columns])
    for _ in _ticks(every, looks):
        for path in arrivals.look():
            now = datetime.now().isoformat(timespec="seconds")
            try:
                (verdict,) = method(path, category=category).verdicts
            except ReadError as error:
                _append(output / "unreadable.csv", [[now, csv_cell(path), csv_cell(error)]])
                say(f"{now}  {error}")
                continue
            scored += 1
            percentile = "" if verdict.percentile is None else f"{verdict.percentile:.4g}"
            _append(
                output / "scores.csv",
                [[now, csv_cell(path), f"{verdict.score:.9g}", percentile, verdict.decision]],
            )
            regions = [[csv_cell(path), *one.box, one.area, f"{one.peak:.6g}"] for one in verdict.regions]
            _append(output / "regions.csv", regions)
            say(f"{now}  {verdict.decision or 'score'} {verdict.score:.3g}  {path}")
    return scored


def check_single_images(method: AnomalyMethod, come: str) -> None:
    """Raises a `UserError` where a method cannot score images as they `come`, one by one."""
    if method.is_transductive:
        raise UserError(
            f"{type(method).__name__} compares the images of a set with each other, so that single images cannot be scored"
            f" as they {come}: use 'predict', or another method"
        )


def _ticks(every: float, looks: int | None) -> Iterator[int]:
    """Counts the looks, with a pause before each but the first."""
    number = 0
    while looks is None or number < looks:
        if number:
            time.sleep(every)
        yield number
        number += 1


def _done(output: Path) -> dict[str, int]:
    """Files that have a row already, with the time in nanoseconds at which the table was last written."""
    table = output / "scores.csv"
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    if tuple(head) != COLUMNS["scores.csv"]:
        raise UserError(f"'{table}' was not written by 'watch': give another output_dir")
    written = table.stat().st_mtime_ns
    return {row[1]: written for row in rows if len(row) == len(head)}


def _append(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
