"""Weights in local files: read without running code, checked key by key, and converted from TorchScript archives."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone.token_rows import whole_table
from anomaly_vlm.errors import UserError

PACKAGE = "package:"


def weights_path(weights: str) -> Path:
    """The file that `backbone.weights` names."""
    if weights.startswith(PACKAGE):
        return Path(__file__).parent.parent / weights.removeprefix(PACKAGE)
    return Path(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file or a PyTorch file (read with `weights_only=True`).

    Token embeddings stored as the rows in use (`token_embedding.ids` [n], `token_embedding.rows` [n, D]) stay as they are.

    Raises:
        UserError: The file is missing, damaged, a TorchScript archive, or needs code to load.
    """
    if not path.is_file():
        raise UserError(f"weights file '{path}' does not exist: give an existing .safetensors or .pt file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"weights file '{path}' is no readable safetensors file ({error}): fetch it again"
            ) from error
    if is_torchscript(path):
        raise UserError(
            f"weights file '{path}' is a TorchScript archive, which can run code: convert it once with"
            f" 'anomaly-vlm convert-weights {path}' and use the .safetensors file that it writes"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damaged and unsafe files by many classes
        reason = str(error).splitlines()[0][:150]
        raise UserError(
            f"weights file '{path}' does not load with weights_only=True ({reason}): give a plain state dict"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"weights file '{path}' holds no state dict (names to tensors): give one in open_clip's key layout"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds a TorchScript program (OpenAI published its weights so)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())


def mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, most: int = 4) -> str:
    """Says how a stored state differs from the expected one in keys and shapes, for error messages.

    Args:
        expected: The state of the module.
        state: The stored state.
        most: Number of differences to name; the others are counted.

    Returns:
        The differences in one line; an empty text where there are none.
    """
    wrong = [f"missing {key}" for key in expected if key not in state]
    wrong += [f"surplus {key}" for key in state if key not in expected]
    for key in (key for key in expected if key in state):
        if not isinstance(state[key], Tensor):
            wrong.append(f"{key} is a {type(state[key]).__name__}, expected a tensor")
        elif state[key].shape != expected[key].shape:
            wrong.append(f"{key} is {list(state[key].shape)}, expected {list(expected[key].shape)}")
    more = [f"and {len(wrong) - most} more"] if len(wrong) > most else []
    return " ".join(["; ".join(wrong[:most]), *more]).strip()


def not_finite(state: Mapping[str, Tensor]) -> str:
    """The first tensor that holds NaN or an infinite value, in words; an empty text where there is none."""
    for key, value in state.items():
        if (
            value.is_floating_point()
            and not bool(torch.isfinite(value.sum()))
            and not bool(torch.isfinite(value).all())
        ):
            return f"{key} holds {int((~torch.isfinite(value)).sum()):,} values that are no finite numbers"
    return ""


def fill_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> nn.Module:
    """Loads `state` strictly, as float32; every missing, surplus or misshaped key is named."""
    expected = model.state_dict()
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    if "token_embedding.weight" in expected:
        state = whole_table(state, expected["token_embedding.weight"])
    wrong = mismatches(expected, state)
    if wrong:
        raise UserError(f"weights file '{source}' does not fit the architecture: {wrong}: choose its backbone")
    if reason := not_finite(state):
        raise UserError(f"weights file '{source}' is damaged: {reason}: fetch it again")
    model.load_state_dict(state)
    return model


def convert_torchscript(path: Path, target: Path | None = None) -> Path:
    """Turns OpenAI's TorchScript archive into a safetensors file in open_clip's key layout (float32).

    Runs the loader of a TorchScript archive, which a malicious file could exploit: only for files of known origin.

    Returns:
        The file written, beside the archive unless `target` is given.
    """
    from safetensors.torch import save_file

    if not path.is_file():
        raise UserError(f"'{path}' does not exist: give OpenAI's .pt archive")
    if not is_torchscript(path):
        raise UserError(
            f"'{path}' is no TorchScript archive: files of tensors load directly with backbone.weights={path}"
        )
    target = target or path.with_suffix(".safetensors")
    state = torch.jit.load(path, map_location="cpu").state_dict()
    for fact in ("input_resolution", "context_length", "vocab_size"):
        state.pop(fact, None)  # plain numbers that OpenAI keeps beside the weights
    save_file({key: value.float().contiguous() for key, value in state.items()}, target)
    return target
