"""The device, the precision and the seed of a run, as the configuration of its trainer says them; without Lightning."""

from __future__ import annotations

import contextlib
import random
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, ListConfig

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.reporting.console import say

HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}  # operations in half precision, weights in float32
WHOLE = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch sees."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def lacks_gpu(cfg: DictConfig) -> bool:
    """Whether the trainer asks for a GPU that this machine does not have."""
    return cfg.trainer.accelerator in ("gpu", "cuda") and not has_gpu()


def check_gpu(cfg: DictConfig) -> None:
    """Raises a `UserError` where the trainer asks for a GPU that is not here."""
    if lacks_gpu(cfg):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}, but no GPU is here: use trainer=auto or trainer=cpu, or install"
            " a torch that sees the GPU"
        )


def adapt_to_machine(cfg: DictConfig, *, processes: bool) -> None:
    """Adapts a stored trainer configuration to this machine, and says so in one line where results may change.

    Args:
        cfg: A stored configuration; without its GPU it continues on the CPU in float32.
        processes: Whether several processes are allowed.
    """
    absent = lacks_gpu(cfg)
    if absent:
        say("trained on a GPU, none is here: continues on the CPU in float32 (trainer=... chooses another)")
        cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32-true"
    if absent or not processes:
        cfg.trainer.devices = 1
        cfg.trainer.pop("strategy", None)


def adapt_precision(cfg: DictConfig) -> None:
    """Runs 16-mixed as bf16-mixed where no GPU is used: no CPU has the operations of the former."""
    if cfg.trainer.precision == "16-mixed" and (cfg.trainer.accelerator == "cpu" or not has_gpu()):
        say("trainer.precision=16-mixed needs a GPU: runs in bf16-mixed")
        cfg.trainer.precision = "bf16-mixed"


def flush_denormals() -> None:
    """Lets the CPU count numbers below 1e-38 as 0.

    Where a loss is nearly 0, squares of its gradients are that small, and the square root of AdamW's moments then takes 80
    times as long. To be called before the first operation: math libraries read the setting once.
    """
    torch.set_flush_denormal(True)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch, for what is drawn when a method is built."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device_of(cfg: DictConfig) -> torch.device:
    """The one device that images are scored on.

    Raises:
        UserError: The accelerator is none of those that torch runs on here.
    """
    check_gpu(cfg)
    kind = cfg.trainer.accelerator
    if kind not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise unknown_choice("trainer.accelerator", str(kind), ("auto", "cpu", "gpu", "cuda", "mps"))
    if kind == "cpu" or not has_gpu():
        return torch.device("cpu")
    devices = cfg.trainer.get("devices")
    number = int(devices[0]) if isinstance(devices, ListConfig) and len(devices) else 0
    return torch.device("cuda", number) if kind != "mps" and torch.cuda.is_available() else torch.device("mps")


def precision_of(cfg: DictConfig, device: torch.device) -> tuple[torch.dtype, AbstractContextManager[Any]]:
    """The type of weights and images, and the context that operations run in.

    Raises:
        UserError: Another precision than torch's own ones.
    """
    adapt_precision(cfg)
    word = SHORT.get(str(cfg.trainer.precision), str(cfg.trainer.precision))
    if word in HALF:
        return torch.float32, torch.autocast(device.type, dtype=HALF[word])
    if word not in WHOLE:
        raise unknown_choice("trainer.precision", word, (*WHOLE, *HALF))
    return WHOLE[word], contextlib.nullcontext()
