"""`anomaly-vlm data`: look at a data set before using it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import pop_key
from anomaly_vlm.runs.compose import compose

HELP = """usage: anomaly-vlm data dataset=NAME [dataset.test.root=FOLDER] [sheet=FILE.png] [index=meta.json]

Checks every file of the test set and counts it; draws a contact sheet of images and masks; writes the official index.
"""


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    sheet, rest = pop_key(arguments, "sheet")
    index, rest = pop_key(rest, "index")
    cfg = compose(["method=adaclip", *rest])
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.describe import describe_data
    from anomaly_vlm.runs.build import build_data

    data = build_data(cfg, ("test",))
    data.check()
    samples = data.samples("test")
    counts = Counter((s.category, s.defect if s.label else "good") for s in samples)
    for (category, defect), count in sorted(counts.items()):
        say(f"{category:<24} {defect:<24} {count:>6}")
    say(f"{describe_data(data).sides['test']}: all files are readable")
    if sheet:
        from anomaly_vlm.reporting.sheet import contact_sheet

        contact_sheet(samples, Path(sheet))
        say(f"contact sheet: {sheet}")
    if index:
        from anomaly_vlm.data.readers.meta_json import write_index

        write_index(samples, Path(index))
        say(f"index: {index}")
    return 0
