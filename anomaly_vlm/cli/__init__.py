"""The console script `anomaly-vlm`: `main` dispatches to one function a command, imported only when it is called."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from anomaly_vlm import __version__
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.files import os_error_line
from anomaly_vlm.methods.base import WITHOUT_LIGHTNING
from anomaly_vlm.names import shown
from anomaly_vlm.runs import processes
from anomaly_vlm.runs.stopping import Stopped, requested, resume_command, stoppable

DEBUG = "--debug"
FORMAT_WARNING = warnings.formatwarning
TRAIN_NOTHING = ("predict", "watch", "serve")  # nor evaluate: they start without Lightning, in half the time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt
SECONDS_FOR_OTHERS = 3.0  # that a process of a distributed run waits to see whether another one has died

COMMANDS = {
    "train": ("anomaly_vlm.cli.train", "train a method, evaluate it, write table, pictures and checkpoint"),
    "evaluate": ("anomaly_vlm.cli.evaluate", "evaluate a checkpoint (ckpt=FILE), or a method that needs no training"),
    "fit": ("anomaly_vlm.cli.fit", "learn from good parts, choose the threshold, write a checkpoint (good=FOLDER)"),
    "inspect": ("anomaly_vlm.cli.inspect", "fit and predict in one go (good=FOLDER images=FOLDER)"),
    "predict": ("anomaly_vlm.cli.predict", "scores, decisions and heat maps of images (ckpt=FILE images=FOLDER)"),
    "watch": ("anomaly_vlm.cli.watch", "score images of a folder as they arrive (ckpt=FILE images=FOLDER)"),
    "serve": ("anomaly_vlm.cli.serve", "judge images over HTTP, with a page to drop one on (ckpt=FILE)"),
    "export": ("anomaly_vlm.cli.export", "a checkpoint as an ONNX file that runs without this suite (ckpt=FILE)"),
    "sweep": ("anomaly_vlm.cli.sweep", "Hydra multirun of train, ending in one table"),
    "dashboard": ("anomaly_vlm.cli.dashboard", "a wandb workspace and report on a study, as code"),
    "benchmark": ("anomaly_vlm.cli.benchmark", "every method in one protocol, and whether its texts matter"),
    "report": ("anomaly_vlm.cli.report", "the tables of all runs below a folder, or a page about some"),
    "compare": ("anomaly_vlm.cli.compare", "published numbers beside measured ones (study=NAME)"),
    "data": ("anomaly_vlm.cli.data", "check a data set, draw a contact sheet, write its index"),
    "submission": ("anomaly_vlm.cli.submission", "maps of MVTec AD 2's private images for its server (data=FOLDER)"),
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
    lines += ["", "'anomaly-vlm COMMAND --help' lists the keys and choices of a command; --debug shows tracebacks."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Whatever goes wrong leaves exactly one line on standard error; `--debug` shows the traceback of what nobody foresaw.

    Returns:
        0; 2 after wrong input, a full disk or a folder that is gone; 130 after Ctrl-C, 143 after SIGTERM; 1 after an error
        of the program.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        set_up_process(arguments[:1])
    debug = DEBUG in arguments
    arguments = [word for word in arguments if word != DEBUG]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(__version__ + "\n")
        return 0
    try:
        with stoppable():
            with resume_command(*arguments):
                status = dispatch(*arguments)
            sys.stdout.flush()
            return status
    except Exception as error:
        if debug:
            raise
        return handle_error(error)
    except Stopped as stopped:
        return report_error("" if processes.is_child() else stopped.line, stopped.status)
    except KeyboardInterrupt:
        return report_error("stopped by Ctrl-C", 130)


def set_up_process(command: Sequence[str]) -> None:
    """Sets environment variables that must be set before torch is imported; skipped when `main` is called from Python.

    Commands that train nothing start without Lightning, and their threads of OpenMP sleep while they wait: spinning,
    as they do by default, is a third of the processor time of a single picture. A training keeps the default: sleeping cost
    AdaCLIP's a sixth of its speed on a quiet machine; beside other work it doubles the speed (`OMP_WAIT_POLICY=passive`).

    Where the locale knows ASCII alone, Python starts anew in its UTF-8 mode: else `é` would reach prompts as two bytes that
    are no text, in arguments and in names of folders alike.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # of processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    warnings.formatwarning = in_one_line
    logging.getLogger("anomaly_vlm").addFilter(with_escapes)
    keep_freed_memory()
    if command and command[0] in TRAIN_NOTHING:
        os.environ[WITHOUT_LIGHTNING] = "1"
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_freed_memory() -> None:
    """Lets glibc keep what a process frees, up to 512 MB, for its next tensors.

    Else it gives feature maps of more than 32 MB back to the system each time and gets them as new pages, one fault after
    another: half the time of eight images in the nano CLIP's stem. Larger blocks than 256 MB still go back at once. All
    threads share one arena, as one of a thread's own gives memory back sooner. Nothing happens under another libc, or where
    the environment says how memory is to be handled.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 256 << 20)
        mallopt(M_TRIM_THRESHOLD, 512 << 20)
        mallopt(M_ARENA_MAX, 1)


def in_one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of this suite as one line for people; others with the place that they come from, as Python does."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"warning: {shown(message)}\n"
    return FORMAT_WARNING(message, category, filename, lineno, line)


def with_escapes(record: logging.LogRecord) -> bool:
    """Makes names in a line of the log harmless, see `names.shown`; keeps every record."""
    record.msg, record.args = shown(record.getMessage()), ()
    return True


def dispatch(name: str, *arguments: str) -> int:
    """Calls a command; returns its exit status."""
    if name not in COMMANDS:
        raise unknown_choice("command", name, COMMANDS)
    import importlib

    return importlib.import_module(COMMANDS[name][0]).run(list(arguments)) or 0


def handle_error(error: Exception) -> int:
    """Reports in one line what went wrong; returns the exit status."""
    if isinstance(error, UserError):
        first_says_it = processes.is_child() and processes.parent_has_ended(SECONDS_FOR_OTHERS)
        return 2 if first_says_it else report_error(str(error), 2)
    if isinstance(error, BrokenPipeError):  # whoever read the output has gone; the interpreter must not try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + 13
    if (dead := processes.lost(SECONDS_FOR_OTHERS)) is not None:
        return report_error(dead[1], dead[0])
    if processes.is_child() and processes.parent_has_ended(SECONDS_FOR_OTHERS):
        return report_error("the first process of this run has ended: this one ends too", 1)
    if isinstance(error, OSError):
        return report_error(os_error_line(error), 2)
    if isinstance(error, MemoryError):
        return report_error("out of memory: lower batch_size, eval_batch_size or image_size", 2)
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())[:300]
    return report_error(
        f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {reason or 'no reason given'}"
        f" (an error of this program: {DEBUG} shows the traceback)",
        1,
    )


def report_error(line: str, status: int) -> int:
    """Writes the line to standard error, ends the run's other processes, and returns the status.

    A child process that was stopped by the first one writes nothing: the first one reports it.
    """
    if line and not (processes.is_child() and requested()):
        sys.stderr.write(f"anomaly-vlm: {shown(line)}\n")
        sys.stderr.flush()
    processes.end_children()
    return status
