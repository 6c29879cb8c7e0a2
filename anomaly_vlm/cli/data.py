"""`anomaly-vlm data`: look at a data set before using it. Needs no method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.path_words import is_place

if TYPE_CHECKING:
    from anomaly_vlm.reporting.inspection import Inspection

HELP = """usage: anomaly-vlm data NAME [FOLDER] [--verify] [sheet=FILE.png] [--meta-json[=FILE]] [key=value ...]

What a data set holds, beside what its publishers state: images by category, split and defect, sizes, anomalous images
without a mask, files that cannot be read, images that come twice. NAME is one of conf/dataset (dataset=NAME is the same),
FOLDER where it lies (dataset.test.root=FOLDER).

--verify      decodes every file, and names masks that are unusual
sheet         draws a contact sheet of images and masks
--meta-json   writes the index of the published repositories, by default FOLDER/meta.json (index=FILE is the same)

Exit status: 0 complete, 1 files that cannot be read or other counts than the publishers state.
"""
SHOWN = 5  # files that are named of each kind


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm data` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    sheet, rest = pop_key(arguments, "sheet")
    index, rest = pop_key([word.replace("--meta-json=", "index=", 1) for word in rest], "index")
    verify, wants_index = "--verify" in rest, "--meta-json" in rest
    overrides = _named([word for word in rest if word not in ("--verify", "--meta-json")])
    cfg = compose(overrides, config="data")
    from anomaly_vlm.data import AnomalyData
    from anomaly_vlm.data.source import FileSource, JointSource
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.reporting.counting import counting
    from anomaly_vlm.reporting.describe import describe_data
    from anomaly_vlm.reporting.inspection import inspect
    from anomaly_vlm.runs.instantiate import instantiate

    source = instantiate(cfg.dataset.test, trusted=cfg.trust)
    used = AnomalyData(test=source)
    description = describe_data(used).sides["test"]
    samples = used.samples("test")
    published = {}
    if isinstance(source, FileSource) and source.categories is None:
        published = source.published_counts
    everything = source.everything() if isinstance(source, FileSource | JointSource) else samples
    with counting("files") as each:
        found = inspect(everything, published=published, decode=verify, each=each)
    for line in _lines(found):
        say(line)
    state = "complete" if found.complete else "not complete"
    say(f"{description}: {state} ({len(everything):,} images looked at)")
    if sheet:
        from anomaly_vlm.reporting.sheet import contact_sheet

        contact_sheet(samples, Path(sheet))
        say(f"contact sheet: {sheet}")
    if index or wants_index:
        from anomaly_vlm.data.readers.meta_json import write_index

        path = Path(index) if index else Path(str(cfg.dataset.test.root)) / "meta.json"
        labelled = [sample for sample in everything if sample.label is not None]  # some sets keep the labels of a split
        write_index(labelled or everything, path)
        say(f"index: {path} ({len(labelled):,} images of all splits)")
    return 0 if found.complete else 1


def _named(words: Sequence[str]) -> list[str]:
    """`NAME FOLDER` in front as overrides; words with `=` stay, but for a second one that is the name of a folder."""
    plain: list[str] = []
    for word in words:
        is_folder = len(plain) == 1 and is_place(word)
        if not word.startswith(("~", "-")) and ("=" not in word or is_folder):
            plain.append(word)
    keys = ("dataset", "dataset.test.root")
    named = [f"{key}={word}" for key, word in zip(keys, plain, strict=False)]
    return [*named, *(word for word in words if word not in plain[: len(keys)])]


def _lines(found: Inspection) -> list[str]:
    lines = [
        f"{category:<24} {split:<6} {defect:<24} {count:>6}"
        for (category, split, defect), count in sorted(found.counts.items())
    ]
    for split in dict.fromkeys([*found.by_split, *found.published]):
        normal, anomalous = found.by_split.get(split, (0, 0))
        line = f"{split}: {normal:,} normal, {anomalous:,} anomalous"
        if split in found.published:
            there = found.published[split]
            same = (normal, anomalous) == there
            line += ", as published" if same else f"; PUBLISHED: {there[0]:,} normal, {there[1]:,} anomalous"
        lines.append(line)
    if found.sizes is not None:
        (low, high) = ("x".join(map(str, size)) for size in found.sizes)
        lines.append(f"sizes: {low}" + ("" if low == high else f" to {high}"))
    lines += found.oddities
    for what, paths in (
        ("anomalous images without a mask", found.without_mask),
        ("files that cannot be read", found.unreadable),
        ("groups of images that are the same", [" = ".join(group) for group in found.repeated]),
    ):
        if paths:
            lines.append(f"{len(paths)} {what}:")
            lines += [f"  {path}" for path in paths[:SHOWN]] + (["  ..."] if len(paths) > SHOWN else [])
    return lines
