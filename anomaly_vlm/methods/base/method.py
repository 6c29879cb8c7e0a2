"""`AnomalyMethod`, the base of every method: a method defines what it predicts and, if it learns, what it minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, FrozenTower
from anomaly_vlm.data.types import Batch, Preprocess
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import LossTerm
from anomaly_vlm.losses.terms import checked_terms
from anomaly_vlm.methods.base.checkpoints import LearnedState
from anomaly_vlm.methods.base.evaluation import Evaluation
from anomaly_vlm.methods.base.images import Images, predict_images
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.steps import TrainerSteps
from anomaly_vlm.metrics.thresholds import Threshold
from anomaly_vlm.options import check_value, checked_constructor

COLLABORATORS = ("backbone", "losses", "optimizer", "scheduler", "evaluation", "detector", "segmenter")  # no options

LARGE = 2 * 10**8  # parameters


class AnomalyMethod(TrainerSteps, LearnedState):
    """Base of all methods: it weighs and logs losses, makes the optimiser, predicts, and stores only what is learned.

    A subclass defines `predict(batch)`, and one that learns also `losses(batch)` and `loss_terms`. The keyword arguments of
    its constructor are checked against their annotations (see `anomaly_vlm.options`).

    Args:
        backbone: Frozen towers. They move with the module, but checkpoints name them instead of storing them.
        losses: Weighted terms by name, from `conf/loss/`.
        optimizer: Makes the optimiser of the parameters (a Hydra `_partial_`). Without it the method cannot be trained.
        scheduler: Makes the learning-rate schedule of the optimiser, which is stepped once an epoch; None for a constant
            rate.
        evaluation: Collects metrics and image rows of a pass, its `result` is that of the last one; None for an
            `evaluation_type` with its defaults.
        seed: Seed of everything random in the method, always combined with other numbers such as epoch and sample index.

    Attributes:
        loss_terms: The terms that `losses` computes, each with the kinds of loss that it may be.
        backbone_types: Kinds of backbone that the method runs on.
        reference_support: Whether it takes reference images, see `FewShot`.
        own_schedule: Whether it changes the rates of its optimiser itself, so that no scheduler may be given.
        predicts_in_order: Whether the prediction of a batch changes that of the next one. Otherwise several batches may be
            predicted at a time, in threads.
        evaluation_type: Evaluation that is used where none is given.
        color_range: Colours of a heat map: a pair (low, high), or `per_image` for the map's own minimum and maximum. None
            for [0, 1], widened where values fall outside.
        overlay: How maps are laid over pictures: blended everywhere, or as heat only where the score is high.

    Raises:
        UserError: An option is unknown or out of its range, `losses` names a term that the method does not offer or gives
            it a kind that does not fit, or the backbone is of another kind.
    """

    backbone: ClipBackbone
    loss_terms: ClassVar[Mapping[str, frozenset[str]]] = {}
    backbone_types: ClassVar[tuple[type[FrozenTower], ...]] = (ClipBackbone,)
    reference_support: Literal["none", "optional", "required"] = "none"
    own_schedule: ClassVar[bool] = False
    predicts_in_order: bool = False
    evaluation_type: ClassVar[type[Evaluation]] = Evaluation
    color_range: tuple[float, float] | Literal["per_image"] | None = None
    overlay: ClassVar[Literal["blend", "heat"]] = "blend"

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
        self.terms = checked_terms(losses, self.loss_terms, owner=type(self).__name__)
        self.seed: int = check_value("method.seed", seed, int)
        self._optimizer, self._scheduler = optimizer, scheduler
        self.evaluation = self.evaluation_type() if evaluation is None else evaluation
        self.run_record: dict[str, Any] = {}
        self.preprocess: Preprocess | None = None  # of images; None for the backbone's defaults
        # What a checkpoint says: thresholds by category, the categories it holds something of, white of more than 8 bits.
        self.decision_thresholds: Mapping[str, Threshold] = {}
        self.known_categories: Sequence[str] = ()
        self.max_value: float | None = None

    def check_backbone(self, backbone: FrozenTower, **_: Any) -> None:
        """Raises a `UserError` where the method does not run on this kind of backbone; called before options are checked."""
        if not isinstance(backbone, self.backbone_types):
            wanted = " or ".join(kind.__name__ for kind in self.backbone_types)
            raise UserError(
                f"{type(self).__name__} runs on a {wanted}, not on backbone {backbone.name}"
                f" ({type(backbone).__name__}): choose another backbone=NAME"
            )

    @property
    def is_large(self) -> bool:
        """Whether one batch fills all cores of a CPU: more parameters than with a CLIP of ViT-B."""
        return sum(parameter.numel() for parameter in self.parameters()) > LARGE

    @property
    def is_transductive(self) -> bool:
        """Whether predictions depend on the set of images that is scored, see `Transductive`."""
        return False

    # ---- what a method defines ---------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        """Computes scores and maps of a batch, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} defines no predict")

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the terms of `self.terms` as unweighted scalars."""
        raise UserError(f"{type(self).__name__} learns nothing: use 'evaluate' instead of 'train'")

    def parameter_groups(self) -> list[Any]:
        """What the optimiser gets: all learnable parameters, or groups of them with different options."""
        return list(self.learnable().values())

    def display_name(self, name: str) -> str:
        """The method's name for tables, with the caveats that its results need."""
        return name

    # ---- learning ----------------------------------------------------------------------------------------------------

    def total_loss(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of unweighted terms.

        Raises:
            UserError: There is none.
        """
        if not values:
            known = ", ".join(self.loss_terms) or "none"
            raise UserError(
                f"the loss has no terms, so that {type(self).__name__} has nothing to learn by (of: {known})"
            )
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

    # ---- use ---------------------------------------------------------------------------------------------------------

    def forward(self, images: Images, category: str | Sequence[str] | None = None) -> Prediction:
        """Scores and maps of images as a user has them, at their own size; see `images.predict_images`."""
        return predict_images(self, images, category)
