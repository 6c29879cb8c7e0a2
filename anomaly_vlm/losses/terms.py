"""Loss terms from a config: `conf/loss/NAME.yaml` maps a term to its weight, kind and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses.dice import dice_loss
from anomaly_vlm.losses.focal import focal_loss

KINDS: dict[str, Callable[..., Tensor]] = {"focal": focal_loss, "dice": dice_loss}


@dataclass(frozen=True)
class LossTerm:
    """A weighted loss: call it for the unweighted value [B] of each sample."""

    weight: float
    function: Callable[..., Tensor]

    def __call__(self, prob: Tensor, target: Tensor) -> Tensor:
        return self.function(prob, target)


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
        function = KINDS[kind]
        known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for option in options:
            if option not in known:
                raise unknown_choice(f"option of loss.{name} (kind {kind})", option, known)
        if options.get("over", "image") not in ("image", "row"):
            raise unknown_choice(f"loss.{name}.over", str(options["over"]), ["image", "row"])
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"loss.{name}.weight is {weight!r}: give a finite number >= 0 (0 leaves the term out)")
        if weight > 0:
            terms[name] = LossTerm(float(weight), partial(function, **options))
    return terms
