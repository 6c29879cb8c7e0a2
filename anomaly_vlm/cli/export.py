"""`anomaly-vlm export`: a checkpoint as an ONNX file, or as OpenVINO's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.cli.arguments import asks_for_help, trusted_in, values_of
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.runs.exported_files import FORMATS

PIXELS = ("float", "uint8")
HELP = """usage: anomaly-vlm export ckpt=FILE [category=WORD] [output=FILE] [format=onnx|openvino] [pixels=float|uint8]

Writes an ONNX file (image in, score and map out) that runs without this suite, and compares it with the method on 20 drawn
pictures. Texts, the memory of good parts and the threshold are those of one category: the one that the checkpoint knows, or
category=WORD. examples/run_onnx.py runs the file. Needs the extra 'export'.
format: openvino writes FILE.xml and FILE.bin in its place, and needs the extra 'openvino' too
pixels: of the input, which takes any number of images: float (RGB in [0, 1]; the default) or uint8 (0 to 255)
trust: packages of your own that the checkpoint may name, such as trust=[mypackage]: their code runs
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm export` with its arguments; returns the exit status."""
    if asks_for_help(arguments, HELP):
        return 0
    values = values_of("export", arguments, ("ckpt", "category", "output", "format", "pixels", "trust"))
    spec, output, form, pixels = (values[key] for key in ("ckpt", "output", "format", "pixels"))
    form = form or "onnx"
    if form not in FORMATS:
        raise unknown_choice("format", form, FORMATS)
    if pixels not in (None, *PIXELS):
        raise unknown_choice("pixels", str(pixels), PIXELS)
    if spec is None:
        raise UserError("no checkpoint given: add ckpt=FILE, or ckpt=package:adaclip")
    from anomaly_vlm.api import load_checkpoint
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.checkpoints import Checkpoint
    from anomaly_vlm.runs.export import export

    trusted = trusted_in(values)
    word = Checkpoint.read(spec, trusted=trusted).category(values["category"])
    suffix = FORMATS[form][0]
    if output and form == "openvino" and Path(output).suffix != suffix:
        raise UserError(
            f"output is '{output}': OpenVINO's files are called NAME{suffix} and NAME.bin, give output=NAME{suffix}"
        )
    path = Path(output) if output else Path(f"{Path(spec.removeprefix('package:')).stem}{suffix}")
    method = load_checkpoint(spec, trusted=trusted)
    done = export(method, path, category=word, pixels="uint8" if pixels == "uint8" else "float", form=form)
    say(f"{done.path}: differs from the method by at most {done.difference:.1e} on {done.images} pictures")
    return 0
