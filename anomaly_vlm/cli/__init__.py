"""The console script `anomaly-vlm`: `main` dispatches to one function a command, imported only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from anomaly_vlm import __version__
from anomaly_vlm.errors import UserError, unknown_choice

COMMANDS = {
    "train": ("anomaly_vlm.cli.train", "train a method, evaluate it, write table, pictures and checkpoint"),
    "evaluate": ("anomaly_vlm.cli.evaluate", "evaluate a checkpoint (ckpt=FILE), or a method that needs no training"),
    "predict": ("anomaly_vlm.cli.predict", "scores and heat maps of a folder of images (ckpt=FILE images=FOLDER)"),
    "sweep": ("anomaly_vlm.cli.sweep", "Hydra multirun of train, ending in one table"),
    "report": ("anomaly_vlm.cli.report", "one table of all runs below a folder"),
    "data": ("anomaly_vlm.cli.data", "check a data set, draw a contact sheet, write its index"),
    "descriptions": ("anomaly_vlm.cli.descriptions", "prompt for a language model, and its answer as a method's texts"),
    "cache": ("anomaly_vlm.cli.cache", "list the token caches on disk, or clear them (clear=NAME|all)"),
    "convert-weights": ("anomaly_vlm.cli.convert", "turn OpenAI's TorchScript archive into a safetensors file"),
    "nano": ("anomaly_vlm.cli.nano", "train the embedded nano CLIP (resumable)"),
    "nano-report": ("anomaly_vlm.cli.nano_report", "what the nano CLIP is worth, beside trivial baselines"),
    "bench": ("anomaly_vlm.cli.bench", "run a benchmark: ratios measured side by side"),
}


def usage() -> str:
    """The text of `anomaly-vlm --help`."""
    lines = [f"anomaly-vlm {__version__}: visual anomaly detection with vision-language models", ""]
    lines += ["usage: anomaly-vlm COMMAND [key=value ...]", ""]
    lines += [f"  {name:<16} {text}" for name, (_, text) in COMMANDS.items()]
    lines += ["", "'anomaly-vlm COMMAND --help' lists the keys and choices of a command."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0, or 2 after wrong input, which leaves exactly one line on standard error.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(__version__ + "\n")
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise unknown_choice("command", name, COMMANDS)
        import importlib

        return importlib.import_module(COMMANDS[name][0]).run(rest) or 0
    except UserError as error:
        sys.stderr.write(f"anomaly-vlm: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("anomaly-vlm: interrupted\n")
        return 130
