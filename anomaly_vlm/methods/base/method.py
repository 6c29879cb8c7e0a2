"""`AnomalyMethod`: the thin base of every method. A method says what it predicts and, if it learns, what it minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, FrozenTower
from anomaly_vlm.data.types import Batch, Preprocess
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import LossTerm
from anomaly_vlm.methods.base.checkpoints import check_state
from anomaly_vlm.methods.base.evaluation import Evaluated, Evaluation
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.options import checked_constructor

COLLABORATORS = ("backbone", "losses", "optimizer", "scheduler", "evaluation", "detector", "segmenter")  # no options


class AnomalyMethod(Evaluated):
    """Base of all methods: weighs and logs losses, builds the optimiser, stores only what is learned.

    A subclass gives `predict(batch)`; one that learns also `losses(batch)` and `loss_terms`. The keyword arguments of its
    constructor are checked against their annotations (see `anomaly_vlm.options`).

    Args:
        backbone: Frozen towers. They move with the module but are named in checkpoints, not stored.
        losses: Weighted terms by name, from `conf/loss/`.
        optimizer: Parameters -> optimiser (a Hydra `_partial_`). None: the method cannot be trained.
        scheduler: Optimiser -> learning-rate schedule, stepped once an epoch; None for a constant rate.
        evaluation: Collects metrics and image rows of a pass; None for one of the method's own `evaluation_type`.
        seed: Of everything random in the method; always combined with epoch and sample index, never global.

    Raises:
        UserError: An option is unknown or out of its range, `losses` names a term that the method does not offer or gives
            it a kind that does not fit, or the backbone is of another kind.
    """

    loss_terms: ClassVar[Mapping[str, frozenset[str]]] = {}  # term -> kinds of loss that it may be
    backbone_types: ClassVar[tuple[type[FrozenTower], ...]] = (ClipBackbone,)
    reference_support: ClassVar[Literal["none", "optional", "required"]] = "none"  # see `FewShot`
    evaluation_type: ClassVar[type[Evaluation]] = Evaluation
    # Colours of a heat map: a pair (low, high), `per_image` for the map's own minimum and maximum; None for [0, 1], widened
    # where values fall outside.
    color_range: tuple[float, float] | Literal["per_image"] | None = None
    overlay: ClassVar[Literal["blend", "heat"]] = "blend"  # maps over pictures: everywhere, or where the score is high

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            init = checked_constructor(
                cls.__dict__["__init__"], owner="method", hidden=COLLABORATORS, first=cls.check_backbone
            )
            cls.__init__ = init  # type: ignore[method-assign]

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        losses: Mapping[str, LossTerm] | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
        evaluation: Evaluation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.terms = dict(losses or {})
        for name, term in self.terms.items():
            if name not in self.loss_terms:
                raise unknown_choice(f"loss term of {type(self).__name__}", name, self.loss_terms)
            if term.kind not in self.loss_terms[name]:
                raise unknown_choice(f"kind of loss.{name}", term.kind, self.loss_terms[name])
        self.seed = seed
        self._optimizer, self._scheduler = optimizer, scheduler
        self.evaluation = self.evaluation_type() if evaluation is None else evaluation
        self.run_record: dict[str, Any] = {}  # what checkpoints say of the run
        self.preprocess: Preprocess | None = None  # how it wants its pixels; None for the backbone's own size

    def check_backbone(self, backbone: FrozenTower, **_: Any) -> None:
        """Raises a `UserError` where the method does not run on this kind of backbone; called before options are read."""
        if not isinstance(backbone, self.backbone_types):
            wanted = " or ".join(kind.__name__ for kind in self.backbone_types)
            raise UserError(
                f"{type(self).__name__} runs on a {wanted}, not on backbone {backbone.name}"
                f" ({type(backbone).__name__}): choose another backbone=NAME"
            )

    # ---- what a method defines ---------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        """Scores and maps of a batch, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The terms of `self.terms`, unweighted scalars."""
        raise UserError(f"{type(self).__name__} learns nothing: use 'evaluate' instead of 'train'")

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: all learnable parameters, or groups of them with options of their own."""
        return list(self.learnable().values())

    def invalidate_caches(self) -> None:
        """Drops what was computed from learned values; called whenever these may have changed."""

    def display_name(self, name: str) -> str:
        """The method's name for tables, with the caveats that its results need."""
        return name

    # ---- learning ----------------------------------------------------------------------------------------------------

    def learnable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained and stored, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted sum of the losses of a batch."""
        values = self.losses(batch)
        total = self.total_loss(values)
        for name, value in {**values, "loss": total}.items():
            self.log(f"train/{name}", value.detach(), on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch))
        if not torch.isfinite(total):
            found = ", ".join(f"{name} {value.item():g}" for name, value in values.items())
            raise UserError(
                f"the loss is not finite at epoch {self.current_epoch}, step {self.global_step} ({found}, image"
                f" '{batch.path[0]}'): lower the learning rate or use trainer.precision=32-true; the last checkpoint is kept"
            )
        return total

    def total_loss(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of unweighted terms."""
        return torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()

    def configure_optimizers(self) -> Any:
        """The optimiser over `parameter_groups`, and its schedule where one is given."""
        parameters = self.parameter_groups()
        if not parameters or self._optimizer is None:
            raise UserError(
                f"{type(self).__name__} as configured has nothing to learn: use 'evaluate' instead of 'train'"
            )
        optimizer = self._optimizer(parameters)
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self._scheduler(optimizer)}

    def on_train_epoch_start(self) -> None:
        self.invalidate_caches()

    # ---- checkpoints: only what is learned ---------------------------------------------------------------------------

    @property  # type: ignore[misc]  # Lightning's has a setter, which nothing here needs
    def strict_loading(self) -> bool:
        """False: Lightning's own check would miss the frozen towers; `check_learned` checks the rest."""
        return False

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The state without the frozen towers; what a method trains of them is there."""
        state = super().state_dict(*args, **kwargs)
        trained = self.learnable()
        return {key: value for key, value in state.items() if not key.startswith("backbone.") or key in trained}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Takes a state, and drops what was computed from the old one."""
        self.invalidate_caches()
        return super().load_state_dict(*args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["anomaly_vlm"] = self.run_record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_learned(checkpoint["state_dict"], "checkpoint")

    def check_learned(self, state: Mapping[str, Tensor], source: str) -> None:
        """Raises a `UserError` that names keys missing from `state`, surplus in it, or of another shape."""
        check_state(self.state_dict(), state, source=source, owner=f"{type(self).__name__} on {self.backbone.name}")
