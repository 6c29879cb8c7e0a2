"""What a prediction has finished so far, on disk, so that the same command resumes where it was stopped.

The first line identifies the prediction; each further line records one finished image. A line is appended in one write once
everything about its image is on disk, so a kill can tear at most the last line, which is then ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm import __version__
from anomaly_vlm.files import FileState, whole_file
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.runs.build import Run
from anomaly_vlm.runs.same_run import what_matters

NAME = "predicted.jsonl"


@dataclass(frozen=True)
class Finished:
    """What is written about one image.

    Attributes:
        index: Its position among the images.
        path: The image file.
        state: Of the file, when it was scored.
        row: Its row of `scores.csv`.
        regions: Its rows of `regions.csv`.
    """

    index: int
    path: str
    state: FileState
    row: list[str]
    regions: list[list[str]]

    @classmethod
    def read(cls, line: bytes) -> Finished | None:
        """What a line of the journal says; None for one that is torn, damaged or of another form."""
        try:
            digest, content = json.loads(line)
            if digest != _digest(content):
                return None
            entry = cls(**content)
            entry = cls(entry.index, entry.path, tuple(entry.state), entry.row, entry.regions)  # type: ignore[arg-type]
            rows = [entry.row, *entry.regions]
            right = (
                type(entry.index) is int and isinstance(entry.path, str) and [type(n) for n in entry.state] == [int] * 2
            )
            right &= all(isinstance(cell, str) for row in rows for cell in row) and len(entry.row) == 5
            right &= math.isfinite(float(entry.row[1]))
            return entry if right and line.endswith(b"\n") else None
        except (ValueError, TypeError, RecursionError):
            return None


class Journal:
    """The journal in a prediction's folder.

    Args:
        path: The file.
        key: Which prediction it is, see `prediction_key`.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def read(self) -> tuple[bool | None, dict[int, Finished]]:
        """What is there.

        Returns:
            Whether it is of this prediction (None: there is no journal), and what it holds by the position of the image,
            whichever prediction it is of.
        """
        try:
            first, *lines = self.path.read_bytes().splitlines(keepends=True) or [b""]
        except FileNotFoundError:
            return None, {}
        found = [entry for line in lines if (entry := Finished.read(line)) is not None]
        return first == self._head().encode(), {entry.index: entry for entry in found}

    def begin(self, finished: Iterable[Finished] = ()) -> None:
        """Starts the journal anew with what is kept."""
        with whole_file(self.path, durable=False) as file:
            file.write(self._head())
            file.writelines(_line(entry) for entry in finished)

    def add(self, entry: Finished) -> None:
        """Adds an image of which everything is written."""
        with self.path.open("a", encoding="ascii") as file:
            file.write(_line(entry))

    def end(self) -> None:
        """Removes the journal of a prediction that has come to its end."""
        self.path.unlink(missing_ok=True)

    def _head(self) -> str:
        return json.dumps({"prediction": self.key}) + "\n"


def _line(entry: Finished) -> str:
    content = asdict(entry)
    return json.dumps([_digest(content), content]) + "\n"


def _digest(content: Any) -> int:
    """CRC-32 of what a line says, which reveals a damaged one."""
    return zlib.crc32(json.dumps(content).encode())


def state_of(path: str) -> FileState:
    """Size and time of the last change of a file; zeros where it is gone."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def prediction_key(run: Run, **asked: str) -> str:
    """A short text that is the same where a prediction would write the same about the same images.

    Args:
        run: Its configuration and its method with everything that it has learned.
        asked: What else was asked for.
    """
    digest = hashlib.blake2b(digest_size=16)
    facts = (
        __version__,
        torch.__version__,
        what_matters(run.cfg),
        run.method.run_record["fingerprint"],
        sorted(asked.items()),
    )
    digest.update(repr(facts).encode("utf-8", "surrogatepass"))
    _add_learned(digest, run.method)
    return digest.hexdigest()


def _add_learned(digest: Any, method: AnomalyMethod) -> None:
    records: Mapping[str, Any] = {name: one.to_record() for name, one in method.decision_thresholds.items()}
    digest.update(json.dumps(records, sort_keys=True, default=repr).encode())
    for name, tensor in sorted(method.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def still_true(
    finished: Mapping[int, Finished],
    paths: Sequence[str],
    states: Sequence[FileState],
    pictures: Mapping[int, str],
    folder: Path | None,
) -> dict[int, Finished]:
    """Those of the images that are where they were and what they were.

    Args:
        finished: What a journal holds.
        paths: Of all images, by position.
        states: Of these files.
        pictures: The names of their pictures, as far as they have one.
        folder: Where these pictures must be; None where they need not.
    """
    found = {}
    for i, entry in finished.items():
        name = pictures.get(i, "")
        same = 0 <= i < len(paths) and (entry.path, entry.state, entry.row[-1]) == (paths[i], states[i], name)
        if same and (folder is None or (folder / name).is_file()):
            found[i] = entry
    return found


class BatchPositions:
    """Positions in batches: what lies in one is scored together or not at all, so that numbers stay the same to the bit.

    Args:
        size: Of a batch.
        total: Number of positions.
    """

    def __init__(self, size: int, total: int) -> None:
        self._all = [set(range(first, min(first + size, total))) for first in range(0, total, size)]

    def whole(self, positions: set[int]) -> set[int]:
        """Those of the positions whose whole batch is among them."""
        return {i for batch in self._all if batch <= positions for i in batch}

    def touched(self, positions: set[int]) -> set[int]:
        """All positions in batches that hold one of these."""
        return {i for batch in self._all if batch & positions for i in batch}
