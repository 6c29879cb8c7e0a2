"""`anomaly-vlm evaluate`: a checkpoint on a data set, or a method that needs no training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_vlm.cli.train import over_seeds, pop_key, repeated, run_folder, shared_with_children
from anomaly_vlm.errors import UserError
from anomaly_vlm.runs.checks import check_values
from anomaly_vlm.runs.compose import compose, describe_choices, merge_overrides

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """usage: anomaly-vlm evaluate ckpt=FILE [dataset=NAME] [key=value ...]
       anomaly-vlm evaluate ckpt=published:FILE method=NAME backbone=NAME ...   the published code's weights
       anomaly-vlm evaluate method=NAME ...                                    a method as it starts

The checkpoint knows its method, backbone and options; data, trainer and batch size may change.
"""


def run(arguments: Sequence[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(f"{HELP}\n{describe_choices()}\n")
        return 0
    ckpt, rest = pop_key(arguments, "ckpt")
    if ckpt is not None and any(word.startswith("seeds=") and word != "seeds=null" for word in rest):
        raise UserError("seeds are of no use with ckpt=FILE, which is one seed's: leave seeds out (make: SEEDS)")
    cfg, spec = configured(ckpt, rest, "evaluate")
    folder = run_folder(cfg)
    with shared_with_children(folder):
        if spec is None and repeated(cfg):
            over_seeds(cfg, folder, lambda one, own: execute(one, None, own))
        else:
            execute(cfg, spec, folder)
    return 0


def configured(ckpt: str | None, overrides: Sequence[str], command: str) -> tuple[DictConfig, str | None]:
    """The configuration of a command that starts from a checkpoint (or from none), and where its weights are."""
    if ckpt is None or ckpt.startswith("published:"):
        cfg = compose(overrides)
    else:
        from anomaly_vlm.runs.build import stored_config

        stored, content = stored_config(Path(ckpt))
        given = any(word.startswith("output_dir=") for word in overrides)
        cfg = merge_overrides(stored, overrides, fixed=("method", "backbone", "loss"))
        if content["anomaly_vlm"].get("references"):
            cfg.shots_list = None  # the checkpoint knows its reference images
        if not any(word.startswith("trainer") for word in overrides):
            fit_machine(cfg, processes=command == "evaluate")
        if not given:
            cfg.output_dir = f"outputs/{command}/{cfg.name}/{timestamp()}"
    check_values(cfg)
    cfg.output_dir = str(cfg.output_dir)  # the time in it is fixed from here on
    return cfg, ckpt


def fit_machine(cfg: DictConfig, *, processes: bool) -> None:
    """Changes a stored trainer to what is here: without its GPU to the CPU in float32 (said in one line), and to one process
    unless several are allowed."""
    from anomaly_vlm.reporting.console import say
    from anomaly_vlm.runs.build import lacks_gpu

    absent = lacks_gpu(cfg)
    if absent:
        say("trained on a GPU, none is here: goes on with the CPU in float32 (trainer=... chooses another)")
        cfg.trainer.accelerator, cfg.trainer.precision = "cpu", "32-true"
    if absent or not processes:
        cfg.trainer.devices = 1
        cfg.trainer.pop("strategy", None)


def timestamp() -> str:
    from datetime import datetime

    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def execute(cfg: DictConfig, spec: str | None, folder: Path) -> None:
    """Evaluates and writes what an evaluation leaves."""
    from lightning.pytorch import seed_everything
    from omegaconf import OmegaConf

    from anomaly_vlm.reporting.console import is_first_process, say
    from anomaly_vlm.runs.build import build, build_trainer, fit_references, load_any
    from anomaly_vlm.runs.detect import precompute_detections
    from anomaly_vlm.runs.outcome import write_outcome

    seed_everything(cfg.seed, verbose=False)
    memory = memory_paths(spec, cfg)
    parts = build(cfg, sides=("test",), excluded_paths=memory)
    said = [trained_on_of(spec)]
    if spec:
        load_any(parts.method, spec)
        parts.facts["checkpoint"] = spec
    if memory is None and cfg.shots:
        fit_references(parts, folder)
        said = [*(said if cfg.train_on == "dataset" else []), parts.data.known]
    parts.facts["data"] = ", ".join([*said, parts.data.describe("test")])
    say(f"{parts.facts['method']} on {parts.facts['backbone']}: {parts.facts['data']}")
    precompute_detections(parts, "test")
    trainer = build_trainer(cfg, callbacks=[])
    trainer.test(parts.method, datamodule=parts.data, verbose=False)
    if is_first_process():
        OmegaConf.save(cfg, folder / "config.yaml")
        write_outcome(
            cfg, folder, parts, parts.method.evaluation.result.values, {**parts.facts, "choices": dict(cfg.choices)}
        )


def memory_paths(spec: str | None, cfg: DictConfig) -> set[str] | None:
    """Paths of the reference images in a checkpoint's memory (the published code's names none); None: it has no memory, and
    `shots` images of each category are picked now.

    Raises:
        UserError: `shots` is not what the memory was made of.
    """
    if spec is None:
        return None
    if spec.startswith("published:"):
        from hydra.utils import get_class

        method: Any = get_class(cfg.method._target_)
        return set() if method.reference_support == "required" else None
    from anomaly_vlm.runs.build import stored_config

    facts = stored_config(Path(spec))[1]["anomaly_vlm"]
    held = set(facts.get("references", []))
    if held and cfg.shots != facts["config"]["shots"]:
        raise UserError(
            f"the checkpoint remembers {facts['config']['shots']} images of each category, this run says shots={cfg.shots}:"
            " leave shots out, or give a checkpoint without a memory (trained with shots=0)"
        )
    return held or None


def trained_on_of(spec: str | None) -> str:
    """What the learned weights saw, in words."""
    if spec is None:
        return "not trained"
    if spec.startswith("published:"):
        return f"published weights {Path(spec.removeprefix('published:')).name}"
    from anomaly_vlm.runs.build import stored_config

    return stored_config(Path(spec))[1]["anomaly_vlm"]["trained_on"]
