"""Loss terms from a config: `conf/loss/NAME.yaml` maps a term to its weight, kind and options."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses.cross_entropy import cross_entropy, focal_of_logits
from anomaly_vlm.losses.dice import dice_loss
from anomaly_vlm.losses.few_shot import alignment_loss, contrastive_loss, level_loss, margin_loss
from anomaly_vlm.losses.focal import balanced_focal_loss, focal_loss
from anomaly_vlm.losses.masks import bce_of_logits, cross_entropy_with_void
from anomaly_vlm.losses.prompts import (
    flow_divergence,
    mean_cosine_square,
    orthogonality_loss,
    prior_loss,
    square_orthogonality_loss,
)

KINDS: dict[str, Callable[..., Tensor]] = {
    "alignment": alignment_loss,
    "balanced_focal": balanced_focal_loss,
    "bce_of_logits": bce_of_logits,
    "ce": cross_entropy,
    "ce_with_void": cross_entropy_with_void,
    "contrastive": contrastive_loss,
    "dice": dice_loss,
    "flow_divergence": flow_divergence,
    "focal": focal_loss,
    "focal_of_logits": focal_of_logits,
    "levels": level_loss,
    "margin": margin_loss,
    "mean_cosine_square": mean_cosine_square,
    "orthogonality": orthogonality_loss,
    "prior": prior_loss,
    "square_orthogonality": square_orthogonality_loss,
}
PROBABILITY = frozenset({"ce", "focal"})  # kinds of a probability and a target, exchangeable in any such term


@dataclass(frozen=True)
class LossTerm:
    """A weighted loss: call it as the function of its kind, for the unweighted value."""

    weight: float
    kind: str
    function: Callable[..., Tensor]

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The unweighted loss of the inputs."""
        return self.function(*inputs)

    @property
    def each_by_itself(self) -> bool:
        """Whether a sample's loss depends on that sample alone, so that samples may be put together at will."""
        options = self.function.keywords if isinstance(self.function, partial) else {}
        return self.kind in ("ce", "focal") or (self.kind == "dice" and options.get("over") != "batch")


def build_terms(
    config: Mapping[str, Mapping[str, Any]] | None, load: Callable[[str], Callable[..., Tensor]] | None = None
) -> dict[str, LossTerm]:
    """Builds the terms of a configuration; those of weight 0 are left out.

    Args:
        config: Terms by name, such as `{"dice": {"weight": 1, "kind": "dice", "over": "row"}}`. `_target_` in place of
            `kind` names a function of the user's own.
        load: Finds the function that a `_target_` names; None where there are none.

    Raises:
        UserError: A kind or an option is unknown or wrong, or a weight is no finite number of at least 0.
    """
    terms = {}
    for name, entry in (config or {}).items():
        if not isinstance(entry, Mapping):
            raise UserError(f"loss.{name} is {str(entry)[:60]}: give kind, weight and options of a loss")
        options = dict(entry)
        target, weight = options.pop("_target_", None), options.pop("weight", 1.0)
        kind = options.pop("kind", None) if target is None else str(target)
        if target is not None and load is not None:
            function = load(kind)
        elif isinstance(kind, str) and kind in KINDS:
            function = KINDS[kind]
        else:
            raise unknown_choice(f"kind of loss.{name}", str(kind), KINDS)
        _check_options(name, kind, function, options)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"loss.{name}.weight is {weight!r}: give a finite number >= 0 (0 leaves the term out)")
        if weight > 0:
            terms[name] = LossTerm(float(weight), kind, partial(function, **options))
    return terms


def checked_terms(
    terms: Mapping[str, LossTerm] | None, offered: Mapping[str, frozenset[str]], *, owner: str
) -> dict[str, LossTerm]:
    """The configured terms, after checking that a method computes them.

    Args:
        terms: Terms by name; None for none.
        offered: The terms that the method computes, each with the kinds of loss that it may be.
        owner: Name of the method, for messages.

    Raises:
        UserError: A term is not offered, or is of a kind that does not fit it.
    """
    for name, term in (terms or {}).items():
        if name not in offered:
            raise unknown_choice(f"loss term of {owner}", name, offered)
        if term.kind not in offered[name] and "." not in term.kind:  # a function of the user's own has a dotted name
            raise unknown_choice(f"kind of loss.{name}", term.kind, offered[name])
    return dict(terms or {})


def _check_options(name: str, kind: str, function: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
    """Checks options against the keyword-only arguments of a loss; `Literal` ones have fixed choices."""
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    hints = typing.get_type_hints(function)
    for option, value in options.items():
        if option not in keywords:
            raise unknown_choice(f"option of loss.{name} (kind {kind})", option, keywords)
        if typing.get_origin(hints[option]) is Literal:
            if value not in typing.get_args(hints[option]):
                raise unknown_choice(f"loss.{name}.{option}", str(value), typing.get_args(hints[option]))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"loss.{name}.{option} is {value!r}: give a number")
