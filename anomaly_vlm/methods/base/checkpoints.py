"""Checkpoints of learned weights: what a method stores, reading files without running code, and checking that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import FrozenTower
from anomaly_vlm.backbone.weight_files import mismatches, not_finite
from anomaly_vlm.errors import UserError
from anomaly_vlm.files import is_damaged
from anomaly_vlm.methods.base.module import Module


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads a `.safetensors` file, or a PyTorch file of tensors and plain containers.

    PyTorch's `weights_only=True` makes sure that no code of the file runs.

    Raises:
        UserError: The file is missing or damaged, or could be loaded only by running code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint '{path}' does not exist: give an existing file")
    try:
        if is_damaged(path):
            before = path.with_name("previous.ckpt")
            way = f"give the state before it, '{before}'" if before.is_file() and before != path else "restore the file"
            raise UserError(f"checkpoint '{path}' is damaged (its content does not match its checksum): {way}")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except UserError:
        raise
    except Exception as error:  # damaged and unsafe files surface as many classes
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint '{path}' does not load ({reason}): give a file of tensors and plain containers"
        ) from error


def check_state(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, source: str, owner: str) -> None:
    """Compares the keys and shapes of a stored state with those of a method.

    Args:
        expected: The method's state.
        state: The stored one.
        source: Where it comes from, for the message.
        owner: Method and backbone, for the message.

    Raises:
        UserError: Names keys that are missing, surplus or of another shape.
    """
    wrong = mismatches(expected, state)
    if wrong:
        raise UserError(
            f"{source} does not fit {owner} as configured: {wrong}: choose the method, backbone and options that it was"
            " made with"
        )


class LearnedState(Module):
    """A module whose checkpoints hold what is learned, and not its frozen backbone.

    Attributes:
        backbone: The frozen towers.
        run_record: What a checkpoint records of the run.
    """

    backbone: FrozenTower
    run_record: dict[str, Any]

    def learnable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained and stored, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def invalidate_caches(self) -> None:
        """Drops what was computed from learned values; it is called whenever these may have changed."""

    @property  # type: ignore[misc]  # Lightning's has a setter, which nothing here needs
    def strict_loading(self) -> bool:
        """False: Lightning's check would miss the frozen towers; `check_learned` checks everything else."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.backbone.parameters()).device

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The state without frozen backbone parameters; backbone parameters that are trained are included."""
        state = super().state_dict(*args, **kwargs)
        trained = self.learnable()
        return {key: value for key, value in state.items() if not key.startswith("backbone.") or key in trained}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads a state, and drops caches that were computed from the previous one."""
        self.invalidate_caches()
        return super().load_state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds `run_record` to a checkpoint; Lightning has stored the `state_dict` already."""
        checkpoint["anomaly_vlm"] = self.run_record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks a checkpoint before its state is loaded."""
        self.check_learned(checkpoint["state_dict"], "checkpoint")

    def check_learned(self, state: Mapping[str, Tensor], source: str) -> None:
        """Checks the keys and shapes of a state.

        Args:
            state: The stored state.
            source: Where it comes from, for the message.

        Raises:
            UserError: Names keys that are missing, surplus or of another shape, or learned values that are no numbers.
        """
        check_state(self.state_dict(), state, source=source, owner=f"{type(self).__name__} on {self.backbone.name}")
        if reason := not_finite({name: state[name] for name in self.learnable()}):
            raise UserError(f"{source}: {reason}: the training that wrote it had diverged, or the file is damaged")
