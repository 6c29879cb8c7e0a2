"""`AnomalyMethod`: the thin base of every method. A method says what it predicts and, if it learns, what it minimises."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, FrozenTower
from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch, References
from anomaly_vlm.detectors import Detector, MapDetector, Queries
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import LossTerm
from anomaly_vlm.metrics import AnomalyMetrics


class Prediction(NamedTuple):
    """What a method says of a batch: `score` [B] and `map` [B, H, W], higher = more anomalous, float32 and finite.

    `boxes`: B tensors [n, 4] (x0, y0, x1, y1) in pixels of the map, where boxes had a part in it. `notes`: B texts for the
    pictures' titles. `parts`: [B, K], what `AnomalyMethod.category_scores` needs of each image, where a score depends on the
    other images of its category.
    """

    score: Tensor
    map: Tensor
    boxes: tuple[Tensor, ...] = ()
    notes: tuple[str, ...] = ()
    parts: Tensor | None = None


@dataclass(frozen=True, slots=True, order=True)
class ImageRow:
    """One evaluated image, for `images.csv` and the choice of pictures; `parts` as in its `Prediction`."""

    index: int
    path: str
    category: str
    label: int
    score: float
    parts: tuple[float, ...] = ()


class AnomalyMethod(L.LightningModule):
    """Base of all methods: weighs and logs losses, builds the optimiser, runs metrics, stores only what is learned.

    A subclass gives `predict(batch)`; one that learns also `losses(batch)` and `loss_terms`.

    Args:
        backbone: the frozen towers. They move with the module but are named in checkpoints, not stored.
        losses: weighted terms by name, from `conf/loss/`.
        optimizer: parameters -> optimiser (a Hydra `_partial_`). None: the method cannot be trained.
        scheduler: optimiser -> learning-rate schedule, stepped once an epoch; None for a constant rate.
        metrics: makes the metrics of one evaluation.
        seed: of everything random in the method; always combined with epoch and sample index, never global.

    Raises:
        UserError: `losses` names a term that the method does not offer, or gives it a kind that does not fit; or the
            backbone is of another kind.
    """

    loss_terms: ClassVar[Mapping[str, frozenset[str]]] = {}  # term -> the kinds of loss that it may be
    towers: ClassVar[tuple[type[FrozenTower], ...]] = (ClipBackbone,)  # the kinds of backbone that the method runs on
    # for the colours of a single map; `own`: its smallest and largest value; None: 0 to 1, or its own where it is wider
    map_range: tuple[float, float] | Literal["own"] | None = None
    overlay: ClassVar[Literal["even", "heat"]] = "even"  # maps in pictures: all over, or where hot
    shots: ClassVar[str] = "none"  # reference images of the test categories: `none`, `optional` or `needed`

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        losses: Mapping[str, LossTerm] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        metrics: Callable[[], AnomalyMetrics] = AnomalyMetrics,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, self.towers):
            wanted = " or ".join(kind.__name__ for kind in self.towers)
            raise UserError(
                f"{type(self).__name__} runs on a {wanted}, not on backbone {backbone.name}"
                f" ({type(backbone).__name__}): choose another backbone=NAME"
            )
        self.backbone = backbone
        self.terms = dict(losses or {})
        for name, term in self.terms.items():
            if name not in self.loss_terms:
                raise unknown_choice(f"loss term of {type(self).__name__}", name, self.loss_terms)
            if term.kind not in self.loss_terms[name]:
                raise unknown_choice(f"kind of loss.{name}", term.kind, self.loss_terms[name])
        self.seed = seed
        self._optimizer, self._scheduler, self._make_metrics = optimizer, scheduler, metrics
        self._metrics: list[Any] = []  # in a list, so that Lightning neither moves nor stores it
        self._rows: list[ImageRow] = []
        self.results: dict[str, float] = {}
        self.image_rows: list[ImageRow] = []
        self.run_facts: dict[str, Any] = {}
        self.token_cache: TokenCache | None = None
        self.detector: Detector | MapDetector | None = None
        self.detected: dict[tuple[str, str], Queries] = {}

    # ---- what a method defines ---------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        """Scores and maps of a batch, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of `self.terms`, unweighted scalars."""
        raise UserError(f"{type(self).__name__} learns nothing: use 'evaluate' instead of 'train'")

    def category_scores(self, parts: Tensor) -> Tensor:
        """Image scores [n] of all evaluated images of one category, from their `Prediction.parts` [n, K], in place of those
        that each image got alone. A method that gives `parts` defines it; it is asked at the end of an evaluation."""
        raise NotImplementedError(f"{type(self).__name__} gives parts of scores, and no category_scores")

    def remember(self, references: Sequence[References]) -> None:
        """Takes the reference images, one entry a category, before anything is trained or scored. A few-shot method makes
        its memory of them here, and the learnable parts that each category has for itself (`shots` says that it does)."""
        raise UserError(f"{type(self).__name__} uses no reference images: set shots=0")

    def frozen_facts(self) -> dict[str, Any] | None:
        """What the frozen tokens of this method depend on besides weights and pixels (layers, attention path, ...), as plain
        values; None: its image tower is not frozen. A method that gives facts gives `encode_frozen`, and reads `frozen`."""
        return None

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Frozen tokens of images [M, 3, H, W] by name, each with the batch axis first."""
        raise NotImplementedError(f"{type(self).__name__} has no frozen image tower")

    def captions(self, category: str) -> tuple[str, ...]:
        """What `detector` is asked about every image of a category, before an evaluation; () where it is not asked."""
        return ()

    def labelled(self, name: str) -> str:
        """The method's name for tables, with what its results must say of themselves."""
        return name

    def official_name(self, name: str) -> str:
        """The key of learnable parameter `name` in the published code's checkpoints."""
        raise UserError(f"{type(self).__name__} has no published checkpoints")

    def official_ignored(self, key: str) -> bool:
        """Whether a key of the published checkpoints holds nothing that this configuration uses."""
        return False

    def official_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a published file, unwrapped; default: a plain state dict."""
        return state

    def official_files(self, files: Mapping[str, dict[str, Any]]) -> dict[str, Tensor] | None:
        """This method's own state from published files (name -> content), where they hold more than learned parameters, or
        come as several; None: one file of parameters, by `official_state` and `official_name`."""
        return None

    # ---- frozen tokens -----------------------------------------------------------------------------------------------

    def frozen(self, batch: Batch) -> dict[str, Tensor]:
        """Frozen tokens of a batch by name, [B, ...]: those that the cache holds, the others computed now and kept."""
        known: list[dict[str, Tensor] | None] = [None] * len(batch) if batch.tokens is None else list(batch.tokens)
        missing = [i for i, entry in enumerate(known) if entry is None]
        if missing:
            with torch.no_grad():
                fresh = self.encode_frozen(batch.image)
            if len(missing) == len(known) and self.token_cache is None:
                return fresh
            for row, i in enumerate(missing):
                known[i] = entry = {name: value[row] for name, value in fresh.items()}
                if self.token_cache is not None:
                    self.token_cache.put(batch.key[i], entry)
        entries = [entry for entry in known if entry is not None]
        return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}

    def kept_text(self, sentences: Sequence[Sequence[str]], encode: Callable[[], Tensor]) -> Tensor:
        """What a frozen text tower makes of sentences: read from the token cache, or made by `encode` and kept there."""
        key = "texts" + hashlib.blake2b(repr(sentences).encode(), digest_size=14).hexdigest()
        entry = None if self.token_cache is None else self.token_cache.get(key)
        if entry is None:
            entry = {"prompts": encode()}
            if self.token_cache is not None:
                self.token_cache.put(key, entry)
        return entry["prompts"]

    # ---- detections --------------------------------------------------------------------------------------------------

    def found(self, path: str, caption: str) -> Queries:
        """What the detector said of an image, looked up in `detected`.

        Raises:
            UserError: it was not asked.
        """
        if (path, caption) not in self.detected:
            raise UserError(
                f"no detections of image '{path}': the detector looks at all images before an evaluation (`look_ahead`)"
            )
        return self.detected[path, caption]

    # ---- learning ----------------------------------------------------------------------------------------------------

    def learnable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained and stored, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        values = self.losses(batch)
        total = self.total_loss(values)
        size = len(batch)
        for name, value in values.items():
            self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True, prog_bar=True, batch_size=size)
        self.log("train/loss", total.detach(), on_step=True, on_epoch=True, prog_bar=True, batch_size=size)
        if not torch.isfinite(total):
            found = ", ".join(f"{name} {value.item():g}" for name, value in values.items())
            raise UserError(
                f"the loss is not finite at epoch {self.current_epoch}, step {self.global_step} ({found}, image"
                f" '{batch.path[0]}'): lower the learning rate or use trainer.precision=32-true; the last checkpoint is kept"
            )
        return total

    def configure_optimizers(self) -> Any:
        parameters = self.parameter_groups()
        if not parameters or self._optimizer is None:
            raise UserError(
                f"{type(self).__name__} as configured has nothing to learn: use 'evaluate' instead of 'train'"
            )
        optimizer = self._optimizer(parameters)
        return (
            optimizer
            if self._scheduler is None
            else {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}
        )

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: all learnable parameters, or groups of them with options of their own."""
        return list(self.learnable().values())

    def training_mask(self, batch: Batch) -> Tensor:
        """The batch's mask [B, H, W] as 0.0 / 1.0, or a `UserError` where the training set has no pixel labels."""
        if batch.mask is None:
            pixel = ", ".join(sorted(self.terms))
            raise UserError(
                f"the training set has image labels only ('{batch.path[0]}'), but the loss ({pixel}) needs pixel masks:"
                " train on a set with masks (TRAIN=procedural) or choose a loss without pixel terms"
            )
        if (unknown := (batch.mask == 255).flatten(1).all(dim=1)).any():
            path = batch.path[int(unknown.nonzero()[0])]
            raise UserError(
                f"training image '{path}' is anomalous and has no mask, though others have: take it out, or give its mask"
            )
        return (batch.mask == 1).to(batch.image.dtype)

    def map_losses(
        self,
        maps: Tensor,
        mask: Tensor,
        *,
        normal: Tensor | None = None,
        suffix: str = "",
        normal_dice: bool = True,
    ) -> dict[str, Tensor]:
        """The terms `focal` and `dice` (of the abnormal and of the normal map) with this suffix, where they are configured.

        Args:
            maps: [layers, B, H, W] abnormal probabilities. mask: [B, H, W] 0.0 / 1.0.
            normal: the normal ones, where they are known to more digits than 1 minus `maps` has; None: 1 minus these.
            normal_dice: False: `dice` of the abnormal map alone.

        Returns:
            Scalars by term: mean over the batch, sum over the layers.
        """
        values = {}
        if (focal := self.terms.get(f"focal{suffix}")) is not None:
            if normal is None:
                each = [focal(m, mask).mean() for m in maps]
            else:  # of the probability of what each pixel is
                true, ones = torch.where(mask > 0, maps, normal), torch.ones_like(mask)
                each = [focal(m, ones).mean() for m in true]
            values[f"focal{suffix}"] = torch.stack(each).sum()
        if (dice := self.terms.get(f"dice{suffix}")) is not None:
            other = 1 - maps if normal is None else normal
            each = [dice(m, mask) for m in maps]
            if normal_dice:
                each = [d + dice(n, 1 - mask) for d, n in zip(each, other, strict=True)]
            each = [d.mean() for d in each]
            values[f"dice{suffix}"] = torch.stack(each).sum()
        return values

    def total_loss(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of unweighted terms."""
        return torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()

    def forget_learned(self) -> None:
        """Drops what was computed from learned values and kept; called whenever these may have changed."""

    def on_train_epoch_start(self) -> None:
        self.forget_learned()

    def on_predict_epoch_start(self) -> None:
        self.forget_learned()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.forget_learned()
        return super().load_state_dict(*args, **kwargs)

    # ---- evaluation --------------------------------------------------------------------------------------------------

    def checked_predict(self, batch: Batch) -> Prediction:
        """`predict` as float32, after checking that it is finite."""
        return self.checked(self.predict(batch), batch)

    def checked(self, made: Prediction, batch: Batch) -> Prediction:
        """A prediction of `batch` as float32, after checking that it is finite."""
        prediction = made._replace(score=made.score.detach().float(), map=made.map.detach().float())
        for part, name in ((prediction.score, "score"), (prediction.map, "map")):
            bad = ~torch.isfinite(part.flatten(1) if part.ndim > 1 else part[:, None]).all(dim=1)
            if bad.any():
                path = batch.path[int(bad.nonzero()[0])]
                raise UserError(
                    f"the {name} of image '{path}' is not finite: the weights or the precision are at fault; use 32-true"
                )
        return prediction

    def new_metrics(self) -> Any:
        """The metrics of one evaluation: `compute` gives values by `ROW/NAME` and `mean/NAME`."""
        return self._make_metrics()

    def measure(self, metrics: Any, batch: Batch) -> Prediction:
        """Predicts a batch and adds it to what `new_metrics` gave."""
        prediction = self.checked_predict(batch)
        metrics.update(
            prediction.score, prediction.map, batch.label, batch.mask, category=batch.category, index=batch.index
        )
        return prediction

    def _evaluate_start(self) -> None:
        self.forget_learned()
        self._metrics, self._rows = [self.new_metrics()], []

    def _evaluate_batch(self, batch: Batch) -> Prediction:
        prediction = self.measure(self._metrics[0], batch)
        columns = (batch.index, batch.label, prediction.score)
        parts = [()] * len(batch) if prediction.parts is None else [tuple(row) for row in prediction.parts.tolist()]
        for path, category, index, label, score, part in zip(
            batch.path, batch.category, *(column.tolist() for column in columns), parts, strict=True
        ):
            self._rows.append(ImageRow(index, path, category, label, score, part))
        return prediction

    def _evaluate_end(self) -> None:
        rows = self._rows
        if dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        self.image_rows = self._settled(sorted({row.index: row for row in rows}.values()))
        self.results = {key: float(value) for key, value in self._metrics[0].compute().items()}
        self._metrics, self._rows = [], []

    def _settled(self, rows: list[ImageRow]) -> list[ImageRow]:
        """The rows of all processes with their final scores, which the metrics get too: by `category_scores` where they have
        `parts`."""
        by_category: dict[str, list[ImageRow]] = {}
        for row in rows:
            if row.parts:
                by_category.setdefault(row.category, []).append(row)
        final = {}
        for some in by_category.values():
            scores = self.category_scores(torch.tensor([row.parts for row in some])).tolist()
            final.update({row.index: score for row, score in zip(some, scores, strict=True)})
        if final:
            self._metrics[0].replace_scores(final)
        return [replace(row, score=final.get(row.index, row.score)) for row in rows]

    def on_test_epoch_start(self) -> None:
        self._evaluate_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate_batch(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluate_end()
        self._log_means("test")

    def on_validation_epoch_start(self) -> None:
        self._evaluate_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluate_end()
        self._log_means("val")

    def _log_means(self, stage: str) -> None:
        for key, value in self.results.items():
            group, _, name = key.rpartition("/")
            if group in ("mean", "") and value == value:
                self.log(f"{stage}/{name}", value, rank_zero_only=False, sync_dist=False)

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        return self.checked_predict(batch)

    # ---- checkpoints: only what is learned ---------------------------------------------------------------------------

    @property  # type: ignore[misc]  # Lightning's has a setter, which nothing here needs
    def strict_loading(self) -> bool:
        """Lightning's own check would miss the frozen towers; `load_learned` checks the rest."""
        return False

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Without the frozen towers; what a method trains of them is there."""
        state = super().state_dict(*args, **kwargs)
        trained = self.learnable()
        return {key: value for key, value in state.items() if not key.startswith("backbone.") or key in trained}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["anomaly_vlm"] = self.run_facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_learned(checkpoint["state_dict"], "checkpoint")

    def check_learned(self, state: Mapping[str, Tensor], source: str) -> None:
        """Raises a `UserError` that names keys missing from `state`, surplus in it, or of another shape."""
        own = self.state_dict()
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
                f"{source} does not fit {type(self).__name__} on {self.backbone.name} as configured:"
                f" {'; '.join(wrong[:4])}{more}: choose the method, backbone and options that it was made with"
            )
