"""Files of learned weights: reading them without running code, and checking that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError


def read_tensors(path: Path) -> dict[str, Any]:
    """A `.safetensors` file, or a PyTorch file of plain containers (`weights_only=True`: nothing in it can run).

    Raises:
        UserError: The file is missing, damaged, or only loads by running code.
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


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str, owner: str) -> None:
    """Compares the keys and shapes of a stored state with those of a method.

    Args:
        own: The method's state.
        state: The stored one.
        source: Where it comes from, for the message.
        owner: Method and backbone, for the message.

    Raises:
        UserError: Names keys that are missing, surplus or of another shape.
    """
    wrong = [f"missing {key}" for key in own if key not in state] + [
        f"surplus {key}" for key in state if key not in own
    ]
    wrong += [
        f"{key} is {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"{source} does not fit {owner} as configured: {'; '.join(wrong[:4])}{more}: choose the method, backbone and"
            " options that it was made with"
        )
