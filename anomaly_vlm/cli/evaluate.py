"""`anomaly-vlm evaluate`: a checkpoint on a data set, or a method that needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anomaly_vlm.cli.arguments import help_with_choices, hydra_words, pop_key
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs import stopping
from anomaly_vlm.runs.configs import composed, from_checkpoint, run_folder, shared_with_children, trusted_packages

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from anomaly_vlm.runs.checkpoints import Checkpoint

HELP = """usage: anomaly-vlm evaluate ckpt=FILE [dataset=NAME] [key=value ...]
       anomaly-vlm evaluate ckpt=published:FILE method=NAME backbone=NAME ...  the published code's weights
       anomaly-vlm evaluate method=NAME ...                                    a method as it starts

The checkpoint knows its method, backbone and options; data, trainer and batch size may change.
"""


def run(arguments: Sequence[str]) -> int:
    """Runs `anomaly-vlm evaluate` with its arguments; returns the exit status."""
    if help_with_choices(arguments, HELP):
        return 0
    spec, overrides = pop_key(arguments, "ckpt")
    if spec is not None and any(word.startswith("seeds=") and word != "seeds=null" for word in overrides):
        raise UserError("seeds are of no use with ckpt=FILE, which is one seed's: leave seeds out (make: SEEDS)")
    cfg, checkpoint = configured(spec, overrides, "evaluate")
    folder = run_folder(cfg, overrides)
    from anomaly_vlm.runs.evaluate import evaluate
    from anomaly_vlm.runs.seeds import asks_for_several, over_seeds

    again = stopping.same_command("evaluate", arguments, output_dir=folder)
    with stopping.resume_command(*again), shared_with_children(folder):
        if checkpoint is None and asks_for_several(cfg):
            over_seeds(cfg, folder, evaluate)
        else:
            evaluate(cfg, folder, checkpoint)
    return 0


def configured(spec: str | None, overrides: Sequence[str], command: str) -> tuple[DictConfig, Checkpoint | None]:
    """The configuration of a command that starts from a checkpoint (or from none), and the checkpoint."""
    overrides = hydra_words(overrides)
    if command not in ("fit", "inspect") and (word := pop_key(overrides, "init")[0]) not in (None, "null"):
        raise UserError(f"init={word} is what a training starts from, and {command} trains nothing: give ckpt={word}")
    asked = any(word.startswith("logger") for word in overrides)  # evaluate and predict log where they are asked to
    fresh = [*overrides, "logger=none"] if command in ("evaluate", "predict") and not asked else overrides
    if spec is None:
        return composed(fresh), None
    # before torch is imported, so that mistakes are reported at once
    cfg = composed(fresh) if spec.startswith("published:") else None
    from anomaly_vlm.runs.checkpoints import Checkpoint

    checkpoint = Checkpoint.read(spec, trusted=trusted_packages(overrides))
    if cfg is None:
        has_memory = bool(checkpoint.record.get("references"))
        cfg = from_checkpoint(checkpoint.config, overrides, command, has_memory=has_memory)
    return cfg, checkpoint
