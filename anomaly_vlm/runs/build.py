"""From a configuration to a `Run`: data, backbone, method, and what the run says of itself."""

from __future__ import annotations

import gc
import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from anomaly_vlm import __version__
from anomaly_vlm.backbone import FrozenTower
from anomaly_vlm.backbone.compiled import compile_blocks
from anomaly_vlm.caching.folders import cache_folder
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data import AnomalyData, Preprocess, Source
from anomaly_vlm.data.augment import TrainingAugmentation
from anomaly_vlm.data.class_aware import ClassAware
from anomaly_vlm.data.crops import RandomCrop
from anomaly_vlm.data.overlap import contents, to_tensor
from anomaly_vlm.data.references import MemoryImages, ReferencePicks, write_list
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import build_terms
from anomaly_vlm.methods.base.few_shot import FewShot
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.options import call_checked
from anomaly_vlm.reporting.console import is_first_process, say
from anomaly_vlm.reporting.describe import describe_data
from anomaly_vlm.runs.devices import check_gpu, flush_denormals
from anomaly_vlm.runs.instantiate import (
    check_backbone_options,
    instantiate,
    method_class,
    own_function,
    plain,
)
from anomaly_vlm.runs.rewriting import rewrite_texts
from anomaly_vlm.runs.same_run import config_key
from anomaly_vlm.runs.schedules import check_schedule, make_optimizer, make_scheduler
from anomaly_vlm.runs.shared_images import note_training_images

if TYPE_CHECKING:
    from anomaly_vlm.data.datamodule import AnomalyDataModule


_BUILT = itertools.count()


@dataclass
class Run:
    """What a run works with.

    Attributes:
        cfg: The composed configuration.
        data: Loaders of all sides that the command needs.
        method: Built and, where a cache serves it, connected to it.
        facts: What tables and records say: method, backbone, data, seed, image size.
    """

    cfg: DictConfig
    data: AnomalyData
    method: AnomalyMethod
    facts: dict[str, Any]

    @property
    def datamodule(self) -> AnomalyDataModule:
        """The data as a Lightning trainer takes them."""
        return cast("AnomalyDataModule", self.data)


def build(
    cfg: DictConfig,
    *,
    sides: tuple[str, ...],
    test: Source | None = None,
    memory_images: MemoryImages | None = None,
    with_trainer: bool = True,
) -> Run:
    """Builds data first, as what they need is checked before any weights are read, then backbone and method.

    Args:
        cfg: The composed configuration.
        sides: Of `train`, `val`, `test` those that the command needs.
        test: A test set of the caller's own; None for that of the configuration.
        memory_images: Reference images in a checkpoint's memory; they, and no new picks, are removed from the test set.
        with_trainer: Whether a Lightning trainer will run it, and not `runs.scoring` alone, which needs no Lightning.
    """
    flush_denormals()
    if next(_BUILT):  # free the towers of an earlier run in this process: its trainer and they reference each other
        gc.collect()
    check_gpu(cfg)
    check_backbone_options(cfg)
    if with_trainer:
        check_for_trainer(cfg)
    create = partial(instantiate, trusted=cfg.trust)
    collaborators = {group: create(cfg[group]) for group in ("detector", "segmenter") if cfg.get(group) is not None}
    data = build_data(cfg, sides, test=test, with_trainer=with_trainer)
    data.memory_images = memory_images
    data.check()
    backbone: Any = create(cfg.backbone, kind=FrozenTower)
    if cfg.get("compile"):
        compile_blocks(backbone, cfg.compile)
    rewrite_texts(cfg, backbone, data)
    method = build_method(cfg, backbone, **collaborators)
    data.preprocess = method.preprocess
    description = describe_data(data)
    facts = {
        "method": method.display_name(cfg.name),
        "backbone": backbone.describe(),
        "random_weights": backbone.is_random,
        "fingerprint": method.run_record["fingerprint"],
        "data": description.whole,
        "seed": cfg.seed,
        "shots": cfg.shots,
        "config": config_key(cfg),
        "texts": cfg.get("texts", "as_written"),
        "image_size": method.preprocess.size if method.preprocess else None,
    }
    note_training_images(data, method, facts, with_train="train" in sides)
    learned_from = "train" in sides or cfg.train_on != "dataset"
    method.run_record["trained_on"] = description.train if learned_from else "nothing"
    attach_cache(cfg, data, method)
    return Run(cfg, data, method, facts)


def check_for_trainer(cfg: DictConfig) -> None:
    """Raises a `UserError` for a wrong key of the trainer or a wrong option of the metrics."""
    from anomaly_vlm.runs.trainer import check_keys

    check_keys(cfg)
    try:
        make_metrics(cfg)
    except (TypeError, ValueError) as error:
        raise UserError(f"metrics: {error}") from error


def make_metrics(cfg: DictConfig) -> Any:
    """New metrics of a pass, as the configuration says; imported only where something is evaluated."""
    from anomaly_vlm.metrics import AnomalyMetrics

    return AnomalyMetrics(**metric_options(plain(cfg.metrics)))


def build_method(cfg: DictConfig, backbone: Any, **collaborators: Any) -> AnomalyMethod:
    """The method of a configuration on a loaded backbone.

    Args:
        cfg: The composed configuration.
        backbone: Frozen towers.
        collaborators: `detector` and `segmenter`, for methods that have them.

    Raises:
        UserError: A wrong option, or `shots` that the method has no use for.
    """
    chosen: Any = method_class(cfg.method, trusted=cfg.trust)
    check_schedule(cfg)
    method: AnomalyMethod = instantiate(
        cfg.method,
        trusted=cfg.trust,
        backbone=backbone,
        losses=build_terms(plain(cfg.loss), partial(own_function, trusted=cfg.trust)),
        optimizer=make_optimizer(cfg),
        scheduler=make_scheduler(cfg),
        evaluation=chosen.evaluation_type(
            partial(make_metrics, cfg), curves=bool(OmegaConf.select(cfg, "pictures.curves", default=True))
        ),
        **collaborators,
    )
    if method.reference_support == "required" and not cfg.shots:
        raise UserError(f"{cfg.name} compares with reference images: set shots=1 or more (make: SHOTS=1)")
    if method.reference_support == "required" and method.loss_terms and cfg.train_on == "nothing":
        raise UserError(f"{cfg.name} learns from its reference images: set train_on=references")
    if cfg.shots and method.reference_support == "none":
        raise UserError(f"{cfg.name} uses no reference images: set shots=0, or choose a few-shot method")
    size = backbone.checked_size(cfg.image_size)
    method.preprocess = Preprocess(size=size, mean=backbone.mean, std=backbone.std, **_pixels(cfg))
    method.run_record = {
        "version": __version__,
        "config": OmegaConf.to_container(cfg, resolve=False),
        "fingerprint": backbone.fingerprint(),
    }
    return method


def metric_options(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The node `metrics` of a configuration as arguments of `AnomalyMetrics`."""
    groups = {"whole_images": ("aupimo", "seg_f1_sigmas", "mean_f1"), "image": ("calibration_bins",)}
    found = {group: {key: options[key] for key in keys if key in options} for group, keys in groups.items()}
    taken = {key for keys in groups.values() for key in keys}
    return {"pixel": {key: value for key, value in options.items() if key not in taken}, **found}


def build_data(
    cfg: DictConfig, sides: tuple[str, ...], *, test: Source | None = None, with_trainer: bool = True
) -> AnomalyData:
    """The data of the sides that a command needs; `test` takes the place of the configuration's."""
    create = partial(instantiate, trusted=cfg.trust)
    given = {} if test is None else {"test": test}
    sides = tuple(side for side in sides if side not in given and cfg.dataset.get(side) is not None)
    sources: dict[str, Any] = {**{side: create(cfg.dataset[side], kind=Source) for side in sides}, **given}
    augment = cfg.augment
    picks = ReferencePicks(sources.get("test"), num_shots=cfg.shots, seed=cfg.seed, shots_list=cfg.shots_list)
    return (_data_module() if with_trainer else AnomalyData)(
        **sources,
        batch_size=cfg.batch_size,
        eval_batch_size=cfg.eval_batch_size,
        num_workers=cfg.num_workers,
        seed=cfg.seed,
        augment=TrainingAugmentation(
            mosaic=augment.mosaic,
            mosaic_on=None if augment.mosaic_on is None else list(augment.mosaic_on),
            operations=[create(operation) for operation in augment.operations],
            crop=None if augment.crop is None else call_checked(RandomCrop, plain(augment.crop), owner="augment.crop"),
            class_aware=ClassAware(augment.get("class_aware", 0.0), tuple(augment.get("class_aware_grids", (2, 3)))),
        ),
        limits={"train": cfg.train_limit, "val": cfg.eval_limit, "test": cfg.eval_limit},
        picks=picks,
        train_on=cfg.train_on,
    )


def fit_references(run: Run, folder: Path, *, only_noted: bool = False) -> None:
    """Gives a few-shot method its reference images, and writes which they are into `references.json`.

    Args:
        run: Its data and its method.
        folder: Of the run.
        only_noted: Whether to record the references only, because the caller fits the method later.
    """
    method, picks = run.method, run.data.picks
    if not run.cfg.shots or not isinstance(method, FewShot):
        return
    if is_first_process():
        write_list(folder / "references.json", picks.samples(), shots=run.cfg.shots, seed=run.cfg.seed)
    method.run_record["references"] = [sample.path for sample in picks.samples()]
    method.run_record["reference_contents"] = to_tensor(contents(picks.samples()))
    if not only_noted:
        method.fit_references(run.data.references())


def attach_cache(cfg: DictConfig, data: AnomalyData, method: AnomalyMethod) -> None:
    """Gives a method whose image tower is frozen its token cache, and lets the data module serve from the same one.

    Augmented images have no key, so that they pass it by. Resized images get a cache of their own where `cache.pixels`
    says so.
    """
    if cfg.cache.get("pixels"):
        data.store_pixels(_pixel_cache(cfg))
    key = method.cache_key() if isinstance(method, FrozenTokens) else None
    if not isinstance(method, FrozenTokens) or key is None:
        return
    if str(cfg.trainer.precision) in ("32-true", "32"):  # else the context of a trainer's thread decides
        data.encode_ahead(method.encode_ahead)
    if cfg.cache.tokens == "off":
        return
    if cfg.pixels.fit != "square":  # a token's position in its image would be unknown
        return
    about = {
        "weights": f"{method.backbone.describe()} {method.run_record['fingerprint']}",
        **method.backbone.cache_key(),
        "pixels": repr(method.preprocess),
        "precision": str(cfg.trainer.precision),
        **key,
    }
    cache = TokenCache(
        about,
        folder=cache_folder("tokens", cfg.cache.folder) if cfg.cache.tokens == "disk" else None,
        disk_bytes=int(cfg.cache.disk_gb * 1e9),
        memory_bytes=int(cfg.cache.memory_gb * 1e9),
    )
    method.token_cache = cache
    data.serve_tokens(cache.get)
    if data.augmented:
        say("token cache: off for training images, as augmentation changes their pixels")


def _pixel_cache(cfg: DictConfig) -> TokenCache:
    """Resized images on disk. What they depend on is in their keys, but for the version of what lies there."""
    return TokenCache(
        {"weights": "none: resized images", "version": 1},
        folder=cache_folder("tokens", cfg.cache.folder),
        disk_bytes=int(cfg.cache.disk_gb * 1e9),
    )


def _pixels(cfg: DictConfig) -> dict[str, Any]:
    """The options of `Preprocess` that the configuration has."""
    options = plain(cfg.pixels)
    frame = options.get("frame")
    if frame is not None and (not isinstance(frame, list) or len(frame) != 2):
        raise UserError(f"pixels.frame is {frame}: give [height, width] in pixels, or null")
    return {**options, "frame": None if frame is None else tuple(frame)}


def _data_module() -> type[AnomalyData]:
    from anomaly_vlm.data.datamodule import AnomalyDataModule

    return AnomalyDataModule
