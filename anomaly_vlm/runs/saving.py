"""The state of a training on disk: written whole, kept until the next one is whole, and recognised where it is damaged."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from anomaly_vlm.errors import UserError
from anomaly_vlm.files import keep_previous, sealed, whole_bytes
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.reporting.console import is_first_process, say

FOLDER, LAST, PREVIOUS, DAMAGED = "checkpoints", "last.ckpt", "previous.ckpt", "damaged.ckpt"


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint beside its place, sealed with a digest, and moves it to its place in one step.

    The state before `last.ckpt` stays as `previous.ckpt`.
    """
    path.parent.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    with whole_bytes(path) as file:
        file.write(sealed(buffer.getvalue()))
        if path.name == LAST:
            file.flush()
            keep_previous(path, path.with_name(PREVIOUS))


def save_method(method: AnomalyMethod, path: Path) -> None:
    """Writes what a method has learned and what its run says of itself, outside a training."""
    checkpoint: dict[str, Any] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    write_checkpoint(checkpoint, path)


def last_state(folder: Path) -> Path | None:
    """The state that a training in `folder` resumes from, or None where there is none.

    Where the newest one is damaged it is put aside, and the one before takes its place, in one line.

    Raises:
        UserError: All that there are are damaged.
    """
    last, previous = folder / FOLDER / LAST, folder / FOLDER / PREVIOUS
    if not (last.is_file() or previous.is_file()):
        return None
    reason = _damage(last)
    if reason is None:
        return last
    if (before := _damage(previous)) is not None:
        raise UserError(
            f"'{last}' is damaged ({reason}) and so is the state before it ({before}): remove the folder"
            f" '{folder / FOLDER}' to train anew"
        )
    if is_first_process():
        say(f"'{last}' is damaged ({reason}): resumes from the state before it; the damaged file is now {DAMAGED}")
        if last.is_file():
            last.replace(last.with_name(DAMAGED))
        keep_previous(previous, last)
    return last


def _damage(path: Path) -> str | None:
    """What is wrong with a state; None for one that loads."""
    if not path.is_file():
        return "it is missing"
    try:
        content = read_tensors(path)
    except UserError as error:
        return str(error).partition("(")[2].partition("): ")[0] or "it does not load"
    return None if isinstance(content, dict) and "state_dict" in content else "it is no checkpoint"
