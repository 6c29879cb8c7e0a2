"""`anomaly-vlm convert-weights`: OpenAI's TorchScript archive becomes a safetensors file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm.errors import UserError

HELP = """usage: anomaly-vlm convert-weights FILE.pt [TARGET.safetensors]

Loading a TorchScript archive can run code: only for files of known origin.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm convert-weights` with its arguments; returns the exit status."""
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    if not 1 <= len(arguments) <= 2:
        raise UserError("convert-weights takes a file and, if wanted, a target: anomaly-vlm convert-weights FILE.pt")
    from anomaly_vlm.backbone import convert_torchscript

    target = convert_torchscript(Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else None)
    sys.stdout.write(f"wrote {target}: use it with backbone.weights={target}\n")
    return 0
