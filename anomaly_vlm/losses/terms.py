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
from anomaly_vlm.losses.focal import focal_loss
from anomaly_vlm.losses.masks import bce_of_logits, cross_entropy_with_void
from anomaly_vlm.losses.prompts import orthogonality_loss, prior_loss

KINDS: dict[str, Callable[..., Tensor]] = {
    "alignment": alignment_loss,
    "bce_of_logits": bce_of_logits,
    "ce": cross_entropy,
    "ce_with_void": cross_entropy_with_void,
    "contrastive": contrastive_loss,
    "dice": dice_loss,
    "focal": focal_loss,
    "focal_of_logits": focal_of_logits,
    "levels": level_loss,
    "margin": margin_loss,
    "orthogonality": orthogonality_loss,
    "prior": prior_loss,
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


def build_terms(config: Mapping[str, Mapping[str, Any]] | None) -> dict[str, LossTerm]:
    """`{"dice": {"weight": 1, "kind": "dice", "over": "row"}}` -> terms; those of weight 0 are left out.

    Raises:
        UserError: unknown kind, unknown or wrong option, weight that is no finite number >= 0.
    """
    terms = {}
    for name, entry in (config or {}).items():
        options = dict(entry)
        kind, weight = options.pop("kind", None), options.pop("weight", 1.0)
        if kind not in KINDS:
            raise unknown_choice(f"kind of loss.{name}", str(kind), KINDS)
        _check_options(name, kind, options)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"loss.{name}.weight is {weight!r}: give a finite number >= 0 (0 leaves the term out)")
        if weight > 0:
            terms[name] = LossTerm(float(weight), kind, partial(KINDS[kind], **options))
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
        if term.kind not in offered[name]:
            raise unknown_choice(f"kind of loss.{name}", term.kind, offered[name])
    return dict(terms or {})


def _check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    """The options of a kind are the keyword-only arguments of its function; `Literal` ones have fixed choices."""
    function = KINDS[kind]
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
