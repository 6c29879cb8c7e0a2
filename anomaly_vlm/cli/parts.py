"""From a configuration to its parts: data, backbone, method, trainer. And back: what a run says of itself."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from anomaly_vlm import __version__
from anomaly_vlm.backbone.cache import TokenCache
from anomaly_vlm.checkpoints import load_official, read_tensors
from anomaly_vlm.cli.checks import check_targets, shipped_targets
from anomaly_vlm.cli.compose import conf_dir
from anomaly_vlm.data import AnomalyDataModule, Preprocess
from anomaly_vlm.data.crops import RandomCrop
from anomaly_vlm.data.references import write_list
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base import AnomalyMethod
from anomaly_vlm.metrics import AnomalyMetrics
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.progress import progress_bar

OFFICIAL = "official:"


@dataclass
class Parts:
    """What a run works with."""

    cfg: DictConfig
    data: AnomalyDataModule
    method: AnomalyMethod
    facts: dict[str, Any]


def make(node: Any, **kwargs: Any) -> Any:
    """Hydra's `instantiate` with plain containers, and with wrong options told in one line.

    `kwargs` are ready objects: they reach the call as they are, where Hydra would turn dataclasses into configurations.
    """
    try:
        call = instantiate(node, _convert_="all", _partial_=True)
        return call if node.get("_partial_") else call(**kwargs)
    except (InstantiationException, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError):
            raise UserError(f"{OmegaConf.select(node, '_target_')}: {str(cause).splitlines()[0]}") from error
        raise


def build(
    cfg: DictConfig,
    *,
    sides: tuple[str, ...],
    data: AnomalyDataModule | None = None,
    remembered: set[str] | None = None,
) -> Parts:
    """Detector, segmenter and data first (what they need is checked before any weights are read), then backbone and method.

    Args:
        remembered: paths of the reference images that a checkpoint to come holds in its memory.
    """
    flush_denormals()
    if lacks_gpu(cfg):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator}, but no GPU is here: use trainer=auto or trainer=cpu, or install"
            " a torch that sees the GPU"
        )
    ready = {group: make(cfg[group]) for group in ("detector", "segmenter") if group in cfg}
    data = data or build_data(cfg, sides)
    data.remembered = remembered
    data.check()
    backbone: Any = make(cfg.backbone)
    size = backbone.checked_size(cfg.image_size)
    data.preprocess = Preprocess(size=size, mean=backbone.mean, std=backbone.std, **_pixels(cfg))
    options = _plain(cfg.metrics)

    def metrics() -> AnomalyMetrics:
        return AnomalyMetrics(pixel=options)

    method: AnomalyMethod = make(
        cfg.method,
        backbone=backbone,
        losses=build_terms(_plain(cfg.loss)),
        optimizer=make(cfg.optimizer) if cfg.optimizer else None,
        scheduler=make(cfg.scheduler) if cfg.scheduler else None,
        metrics=metrics,
        **ready,
    )
    if method.shots == "needed" and cfg.train_on == "nothing":
        raise UserError(f"{cfg.name} learns from its reference images: set train_on=references")
    if cfg.shots and method.shots == "none":
        raise UserError(f"{cfg.name} uses no reference images: set shots=0, or choose a few-shot method")
    facts = {
        "method": method.labelled(cfg.name),
        "backbone": backbone.describe(),
        "random_weights": backbone.is_random,
        "fingerprint": backbone.fingerprint(),
        "data": data.describe(),
        "seed": cfg.seed,
        "image_size": size,
    }
    method.run_facts = {
        "version": __version__,
        "config": OmegaConf.to_container(cfg, resolve=False),
        "fingerprint": facts["fingerprint"],
        "trained_on": data.describe("train") if "train" in sides or cfg.train_on != "dataset" else "nothing",
    }
    attach_cache(cfg, data, method)
    return Parts(cfg, data, method, facts)


def flush_denormals() -> None:
    """Lets the CPU count numbers below 1e-38 as 0.

    Where a loss is nearly 0, squares of its gradients are that small, and the square root of AdamW's moments then takes 80
    times as long. To be called before the first operation: math libraries read the setting once.
    """
    torch.set_flush_denormal(True)


def remember(parts: Parts, folder: Path) -> None:
    """Gives a few-shot method its reference images, and writes which they are."""
    if not parts.cfg.shots:
        return
    if is_first_process():
        write_list(folder / "references.json", parts.data.picks(), shots=parts.cfg.shots, seed=parts.cfg.seed)
    parts.method.run_facts["references"] = [sample.path for sample in parts.data.picks()]
    parts.method.remember(parts.data.references())


def attach_cache(cfg: DictConfig, data: AnomalyDataModule, method: AnomalyMethod) -> None:
    """Gives a method whose image tower is frozen its token cache, and the data module the same one.

    Augmented images have no key, so that they pass it by.
    """
    wanted, facts = cfg.cache.tokens, method.frozen_facts()
    if wanted == "off" or facts is None or cfg.pixels.fit != "square":  # else a token's place in its image is unknown
        return
    about = {
        "weights": f"{method.backbone.describe()} {method.run_facts['fingerprint']}",
        **method.backbone.run_facts(),
        "pixels": repr(data.preprocess),
        "precision": str(cfg.trainer.precision),
        **facts,
    }
    cache = TokenCache(
        about,
        folder=Path(cfg.cache.folder) if wanted == "disk" else None,
        disk_bytes=int(cfg.cache.disk_gb * 1e9),
        memory_bytes=int(cfg.cache.memory_gb * 1e9),
    )
    method.token_cache = data.tokens = cache
    if "train" in data.sources and data.augmented:
        say("token cache: off for training images, as augmentation changes their pixels")


def _pixels(cfg: DictConfig) -> dict[str, Any]:
    """The options of `Preprocess` that the configuration has."""
    options = _plain(cfg.pixels)
    frame = options.get("frame")
    if frame is not None and (not isinstance(frame, list) or len(frame) != 2):
        raise UserError(f"pixels.frame is {frame}: give [height, width] in pixels, or null")
    return {**options, "frame": None if frame is None else tuple(frame)}


def _plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain containers, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


def build_data(cfg: DictConfig, sides: tuple[str, ...]) -> AnomalyDataModule:
    """The data module of the sides that a command needs."""
    sources = {side: make(cfg.dataset[side]) for side in sides if cfg.dataset.get(side) is not None}
    return AnomalyDataModule(
        **sources,
        batch_size=cfg.batch_size,
        eval_batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        seed=cfg.seed,
        mosaic=cfg.augment.mosaic,
        mosaic_on=None if cfg.augment.mosaic_on is None else list(cfg.augment.mosaic_on),
        augment=[make(operation) for operation in cfg.augment.operations],
        crop=None if cfg.augment.crop is None else RandomCrop(**_plain(cfg.augment.crop)),
        train_limit=cfg.train_limit,
        eval_limit=cfg.eval_limit,
        shots=cfg.shots,
        shots_list=cfg.shots_list,
        train_on=cfg.train_on,
    )


def lacks_gpu(cfg: DictConfig) -> bool:
    """Whether the trainer asks for a GPU that this machine does not have."""
    here = CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    return cfg.trainer.accelerator in ("gpu", "cuda") and not here


def build_trainer(
    cfg: DictConfig, *, callbacks: list[Callback], fitting: bool = False, validating: bool = False
) -> L.Trainer:
    """The trainer, with loggers only where something is fitted, and a validation loop only where an epoch is chosen."""
    bar = progress_bar(cfg.callbacks.progress)
    extra = [make(node) for node in cfg.callbacks.extra] if fitting else []
    loggers = [_logger(node) for node in cfg.logger.values()] if fitting else False
    quiet_lightning()
    loops = {} if validating or not fitting else {"limit_val_batches": 0}
    try:
        trainer: L.Trainer = make(
            cfg.trainer,
            callbacks=[*callbacks, *([bar] if bar is not None else []), *extra],
            logger=loggers,
            enable_progress_bar=bar is not None,
            **loops,
            enable_checkpointing=any(type(c).__name__ == "ModelCheckpoint" for c in callbacks),
        )
    except MisconfigurationException as error:
        told = " ".join(str(error).split())
        raise UserError(f"the trainer does not fit this machine ({told}): change trainer=... or its keys") from error
    return trainer


def _logger(node: DictConfig) -> Any:
    if "wandb" in node._target_.lower():
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError(
                "logger=wandb needs the package wandb: install the extra 'wandb', or use logger=csv"
            ) from error
        if not node.get("offline", False) and not (
            os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
        ):
            raise UserError("logger=wandb online needs a key: run 'wandb login', or set logger.wandb.offline=true")
    return make(node)


def quiet_lightning() -> None:
    """Lightning's advice about workers, devices and services is noise to a user who chose none of them."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # the frozen towers; that is meant
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")  # a resumed run's own
    warnings.filterwarnings("ignore", ".*The dirpath has changed.*")  # a run's folder may be moved
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Consider setting `persistent_workers=True`.*")
    warnings.filterwarnings("ignore", ".*`isinstance.treespec, LeafSpec.` is deprecated.*")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def stored_config(path: Path) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration and the whole content of one of the suite's checkpoints.

    Raises:
        UserError: missing, damaged, not one of ours, or its configuration names foreign code.
    """
    content = read_tensors(path)
    facts = content.get("anomaly_vlm") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or "state_dict" not in content:
        raise UserError(
            f"'{path}' is no checkpoint of this suite: give a .ckpt that 'train' wrote, or ckpt=official:{path} method=NAME"
        )
    check_targets(facts["config"], shipped_targets(conf_dir()), f"checkpoint '{path}'")
    return DictConfig(facts["config"]), content


def load_learned(method: AnomalyMethod, path: Path, content: dict[str, Any]) -> None:
    """Learned weights of one of the suite's checkpoints into `method`, after checking that they belong together."""
    stored, own = content["anomaly_vlm"]["fingerprint"], method.run_facts["fingerprint"]
    if stored != own:
        name = content["anomaly_vlm"]["config"]["backbone"].get("name")
        raise UserError(
            f"checkpoint '{path}' was made on other backbone weights ({name}, fingerprint {stored}) than the ones loaded"
            f" ({method.backbone.describe()}, fingerprint {own}): use the same backbone and weights file"
        )
    method.check_learned(content["state_dict"], f"checkpoint '{path}'")
    method.load_state_dict(content["state_dict"], strict=False)


def load_any(method: AnomalyMethod, spec: str) -> None:
    """`FILE` (the suite's) or `official:FILE` (the published code's) into a built method."""
    if spec.startswith(OFFICIAL):
        load_official(method, spec.removeprefix(OFFICIAL))
        return
    path = Path(spec)
    _, content = stored_config(path)
    made = content["anomaly_vlm"]["config"]["name"]
    if made != method.run_facts["config"]["name"]:
        raise UserError(
            f"checkpoint '{path}' was made by method={made}, this run is method={method.run_facts['config']['name']}:"
            f" choose method={made} or another checkpoint"
        )
    load_learned(method, path, content)
