"""What was tried, as `docs/reliability.md`."""

from __future__ import annotations

import os
import platform
from pathlib import Path

TABLE: dict[str, int] = {}  # kind of fault -> tries, all of which ended as they must
EXPECTED = {  # kind -> what must follow
    "kill at a file operation, training": "resumes to the weights and numbers of the unbroken run, bit by bit",
    "kill at a file operation, evaluation": "the same command ends in the same numbers",
    "kill at a file operation, prediction": "the same command resumes; tables and pictures are the same, byte by byte",
    "kill at a file operation, sweep": "the same sweep ends in the same table",
    "kill at a file operation, seeds": "resumes to the same table",
    "kill at any moment, training": "resumes to the weights and numbers of the unbroken run, bit by bit",
    "kill at any moment, evaluation": "the same command ends in the same numbers",
    "kill at any moment, prediction": "the same command resumes; tables and pictures are the same, byte by byte",
    "kill at any moment, sweep": "the same sweep ends in the same table",
    "kill at any moment, token cache": "no entry is half there; the next run has the numbers of the unbroken one",
    "SIGTERM": "status 143, one line with the command that resumes; it ends in the numbers of the unbroken run",
    "Ctrl-C": "status 130, one line with the command that resumes; it ends in the numbers of the unbroken run",
    "stopped or killed in a validation": "no step is lost; the same last and best weights and numbers, bit by bit",
    "flipped bit or cut in a checkpoint": "recognised; training resumes from the state before, in one line",
    "file size limit": "status 2, one line; every file that is there is whole",
    "full file system": "status 2, one line; every file that is there is whole",
    "read-only folder": "status 2, one line",
    "output folder vanishes": "status 2, one line",
    "no folder for temporary files": "the run ends well",
    "a process of several dies": "all end within a minute, with a line",
    "hostile names": "status 0; nothing that steers a terminal, a spreadsheet or a table",
    "overrides": "status 0 or 2, one line",
    "odd words for every key of every method, without the command line": "the run is built, or one line",
    "broken checkpoint": "status 2, one line",
    "broken file of a run, a cache or an index": "status 0 or 2, one line",
    "no network": "the command runs",
    "thousands of images, prediction": "resident memory flat within 2 % after the first tenth, no handle left",
    "thousands of images, evaluation": "resident memory flat within 2 % after the first tenth, no handle left",
    "thousands of images with masks, binned": "resident memory flat within 2 % after the first tenth, no handle left",
    "evaluations in one process": "resident memory flat within 2 % after the fifth, no handle left",
}


def write_table(path: Path) -> None:
    """Writes the table; kinds that were not tried are named as such."""
    lines = [
        "# What was broken, and what followed",
        "",
        "Made by `make test-faults`, which drives the real command line and compares with the unbroken run. It is written",
        f"only where none of its tests failed. Last made on {platform.system()}, {os.cpu_count()} cores.",
        "",
        "| what happens | tries | what followed, each time |",
        "| --- | ---: | --- |",
    ]
    for kind, expected in EXPECTED.items():
        lines.append(f"| {kind} | {TABLE.get(kind, 'not tried here')} | {expected} |")
    unknown = set(TABLE) - set(EXPECTED)
    assert not unknown, f"kinds without an expectation: {unknown}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
