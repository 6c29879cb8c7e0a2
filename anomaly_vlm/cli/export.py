"""`anomaly-vlm export`: a checkpoint as a file that runs without this suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import asks_for_help, pop_key
from anomaly_vlm.errors import UserError, unknown_choice

HELP = """usage: anomaly-vlm export ckpt=FILE [format=onnx] [category=WORD] [to=FILE.onnx]

Image in (RGB in [0, 1], 1 x 3 x S x S), score and map out; the threshold is in the file's metadata. Compared with torch on
20 images before it is written. examples/run_onnx.py runs the file without this suite.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm export` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    spec, rest = pop_key(arguments, "ckpt")
    form, rest = pop_key(rest, "format")
    category, rest = pop_key(rest, "category")
    target, rest = pop_key(rest, "to")
    if rest:
        raise UserError(f"'{rest[0]}' is no key of export: give ckpt=FILE, format=onnx, category=WORD, to=FILE")
    if spec is None:
        raise UserError("no checkpoint given: add ckpt=FILE, a .ckpt that 'fit' or 'train' wrote (make: CKPT=FILE)")
    if form not in (None, "onnx"):
        raise unknown_choice("format", str(form), ["onnx"])
    from anomaly_vlm.api import load_checkpoint
    from anomaly_vlm.methods.base.verdict import known_category
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.export import export_onnx

    path = Path(target) if target else Path(spec.rpartition(":")[2]).with_suffix(".onnx")
    if not path.parent.is_dir():
        raise UserError(f"to={path}: no such folder '{path.parent}': give a file in an existing one")
    method = load_checkpoint(spec)
    difference = export_onnx(method, known_category(method.known_categories, category), path)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB; scores and maps differ from torch by at most {difference:.1g}")
    return 0
