"""Checkpoints: the published code's files, and this suite's own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.method import AnomalyMethod


def read_tensors(path: Path) -> dict:
    """A `.safetensors` file, or a PyTorch file of plain containers (`weights_only=True`: nothing in it can run).

    Raises:
        UserError: missing, damaged, or a file that only loads by running code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist: give an existing file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and unsafe files surface as many classes
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint '{path}' does not load ({reason}): give a file of tensors and plain containers"
        ) from error


def _read_all(path: Path) -> dict[str, dict]:
    """A file, or the files of a folder, by name."""
    if not path.is_dir():
        return {path.name: read_tensors(path)}
    paths = sorted(file for file in path.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
    if not paths:
        raise UserError(
            f"folder '{path}' has no .pt, .pth or .safetensors file: give the folder of the published files"
        )
    return {file.name: read_tensors(file) for file in paths}


def load_official(method: AnomalyMethod, path: str | Path) -> AnomalyMethod:
    """Loads a checkpoint of the published code into `method`.

    The method translates the key layout (its `official_name`); shapes are checked and every missing or surplus key is named.

    Args:
        method: built with the options that the checkpoint was trained with.
        path: `.pth`/`.pt` or `.safetensors` in the published key layout; a folder of them for methods that publish one a
            category.

    Returns:
        The same method.

    Raises:
        UserError: see above, or the method has no published checkpoints.
    """
    path = Path(path)
    files = _read_all(path)
    if (whole := method.official_files(files)) is not None:
        method.check_learned(whole, f"official checkpoint '{path}'")
        method.load_state_dict(whole, strict=False)
        return method
    if path.is_dir():
        raise UserError(f"official checkpoint '{path}' is a folder, {type(method).__name__} has one file: give that")
    state = method.official_state(files[path.name])
    own: dict[str, Tensor] = {}
    used = set()
    for name in method.learnable():
        key = method.official_name(name)
        if key in state:
            own[name] = state[key].to(torch.float32)
            used.add(key)
    names = {method.official_name(name): name for name in method.learnable()}
    missing = [key for key in names if key not in state]
    surplus = [key for key in state if key not in used and not method.official_ignored(key)]
    if missing or surplus:
        listed = [f"missing {key}" for key in missing] + [f"surplus {key}" for key in surplus]
        raise UserError(
            f"official checkpoint '{path}' does not fit {type(method).__name__} as configured: {'; '.join(listed)}:"
            " set the options that it was trained with"
        )
    method.check_learned(own, f"official checkpoint '{path}'")
    method.load_state_dict(own, strict=False)
    return method
