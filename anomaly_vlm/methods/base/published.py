"""Checkpoints of the published codes: the `published.py` of each method describes their keys."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.checkpoints import read_tensors
from anomaly_vlm.methods.base.method import AnomalyMethod

Files = Mapping[str, dict[str, Any]]  # file name -> content


@dataclass(frozen=True)
class PublishedLayout:
    """How the checkpoints of a published code are laid out.

    Attributes:
        key: From a method and the name of a learnable parameter to its key in the published file.
        unwrap: From a method and the content of a published file to the tensors in it; by default a plain state dict.
        ignored: From a method and a key to whether this configuration uses nothing of the key.
        whole: From a method and all files to the method's state, where published files hold more than learned parameters or
            come as several. None where they are one file of parameters, which the other three describe.
    """

    key: Callable[[Any, str], str]
    unwrap: Callable[[Any, dict[str, Any]], dict[str, Tensor]] = lambda method, content: content
    ignored: Callable[[Any, str], bool] = lambda method, key: False
    whole: Callable[[Any, Files], dict[str, Tensor] | None] = lambda method, files: None


def layout_of(method: AnomalyMethod) -> PublishedLayout:
    """The layout in the `published.py` beside the method's module, or beside the module of a class that it extends.

    Raises:
        UserError: The method has no published checkpoints.
    """
    for cls in type(method).__mro__:
        folder = cls.__module__.rpartition(".")[0]
        if cls is AnomalyMethod:
            break
        if folder and find_spec(f"{folder}.published") is not None:
            layout = getattr(importlib.import_module(f"{folder}.published"), "LAYOUT", None)
            if isinstance(layout, PublishedLayout):
                return layout
    raise UserError(f"{type(method).__name__} has no published checkpoints")


def load_published(method: AnomalyMethod, path: str | Path) -> AnomalyMethod:
    """Loads a checkpoint of the published code into `method`.

    Args:
        method: Built with the options that the checkpoint was trained with.
        path: A `.pth`, `.pt` or `.safetensors` file with the published keys; a folder of them for methods that publish a
            file for each category.

    Returns:
        The same method.

    Raises:
        UserError: The method has no published checkpoints, or the file's keys or shapes do not fit; every missing and
            surplus key is named.
    """
    path, layout = Path(path), layout_of(method)
    files = _read_all(path)
    whole = layout.whole(method, files)
    if whole is None:
        if path.is_dir():
            raise UserError(
                f"published checkpoint '{path}' is a folder, {type(method).__name__} has one file: give that"
            )
        whole = _learned(method, layout, layout.unwrap(method, files[path.name]), path)
    method.check_learned(whole, f"published checkpoint '{path}'")
    method.load_state_dict(whole, strict=False)
    return method


def _learned(method: AnomalyMethod, layout: PublishedLayout, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The method's learnable parameters from the tensors of a published file."""
    keys = {name: layout.key(method, name) for name in method.learnable()}
    missing = [key for key in keys.values() if key not in state]
    surplus = [key for key in state if key not in keys.values() and not layout.ignored(method, key)]
    if missing or surplus:
        listed = [f"missing {key}" for key in missing] + [f"surplus {key}" for key in surplus]
        raise UserError(
            f"published checkpoint '{path}' does not fit {type(method).__name__} as configured: {'; '.join(listed)}:"
            " set the options that it was trained with"
        )
    return {name: state[key].to(torch.float32) for name, key in keys.items()}


def _read_all(path: Path) -> dict[str, dict[str, Any]]:
    """A file, or the files of a folder, by name."""
    if not path.is_dir():
        return {path.name: read_tensors(path)}
    paths = sorted(file for file in path.iterdir() if file.suffix in (".pt", ".pth", ".safetensors"))
    if not paths:
        raise UserError(
            f"folder '{path}' has no .pt, .pth or .safetensors file: give the folder of the published files"
        )
    return {file.name: read_tensors(file) for file in paths}
