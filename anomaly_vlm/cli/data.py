"""`anomaly-vlm data`: look at a data set before using it. Needs no method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.runs.compose import compose

HELP = """usage: anomaly-vlm data dataset=NAME [dataset.test.root=FOLDER] [sheet=FILE.png] [index=meta.json]

Checks every file of the test set and counts it; draws a contact sheet of images and masks; writes the index of the published
repositories.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm data` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    sheet, rest = pop_key(arguments, "sheet")
    index, overrides = pop_key(rest, "index")
    cfg = compose(overrides, config="data")
    from anomaly_vlm.data import AnomalyDataModule
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.describe import describe_data
    from anomaly_vlm.runs.instantiate import instantiate

    data = AnomalyDataModule(test=instantiate(cfg.dataset.test, trusted=cfg.trust))
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
