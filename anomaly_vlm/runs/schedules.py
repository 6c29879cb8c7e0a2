"""The optimiser of a method and how its rate changes: the keys `optimizer`, `scheduler` and `rate` of a configuration."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR

from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.instantiate import instantiate, method_class


def make_optimizer(cfg: DictConfig) -> Any:
    """What makes the optimiser; None where there is none.

    A fused one, which is quicker and nothing else, gives way where Lightning could not clip its gradients.
    """
    if not cfg.optimizer:
        return None
    made = instantiate(cfg.optimizer, trusted=cfg.trust)
    clipped = cfg.get("gradient_clip") is not None and "mixed" in str(cfg.trainer.precision)
    return partial(made, fused=False) if clipped and cfg.optimizer.get("fused") else made


def make_scheduler(cfg: DictConfig) -> Any:
    """What makes the schedule of an optimiser; None for a constant rate."""
    if cfg.scheduler:
        return instantiate(cfg.scheduler, trusted=cfg.trust)
    if cfg.get("rate") != "cosine":
        return None
    epochs = cfg.epochs  # a run that resumes with more of them goes on where its new curve stands
    return partial(LambdaLR, lr_lambda=lambda epoch: (1 + math.cos(math.pi * min(epoch / epochs, 1))) / 2)


def check_schedule(cfg: DictConfig) -> None:
    """Raises a `UserError` for a schedule that is given to a method which has its own."""
    chosen = method_class(cfg.method, trusted=cfg.trust)
    if chosen.own_schedule and (cfg.scheduler or cfg.get("rate") == "cosine"):
        raise UserError(
            f"{chosen.__name__} changes its rates itself, as method.stages says: leave scheduler and rate out"
        )
