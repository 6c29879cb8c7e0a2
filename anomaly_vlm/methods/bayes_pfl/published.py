"""The checkpoints of Bayes-PFL's program: one entry `MyModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.published import Files, PublishedLayout
from anomaly_vlm.methods.bayes_pfl.method import BayesPFL

PREFIXES = {  # ours -> the file's
    "head_context.": "context_encoder.",
    "head_state.": "state_encoder.",
    "flow_context.": "PFL_context.",
    "flow_normal.": "PFL_normal.",
    "flow_abnormal.": "PFL_abnormal.",
    "rca.": "RCA.",
    "prompt_normal": "prompt_state_normal",
    "prompt_abnormal": "prompt_state_abnormal",
}
REPEATED = {"PFL_context.encoder.": "context_encoder.", "PFL_normal.encoder.": "state_encoder."}
REPEATED["PFL_abnormal.encoder."] = "state_encoder."
_FLOWS = ("PFL_context", "PFL_normal", "PFL_abnormal")
UNUSED = ("context_decoder.", "state_decoder.", *(f"{flow}.{part}." for flow in _FLOWS for part in ("decoder", "p_mu")))


def key(method: BayesPFL, name: str) -> str:
    """The published key of a learnable parameter."""
    for ours, theirs in PREFIXES.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            if ours.startswith("head_"):
                rest = rest.replace("weight_mean.", "weight_mean.module.")
                rest = rest.replace("weight_log_variance.", "weight_log_variance.module.")
            return theirs + rest
    return name


def whole(method: BayesPFL, files: Files) -> dict[str, Tensor]:
    """The method's state from a published file, whose repeated tensors are checked and whose unused ones are left out."""
    (content,) = files.values()
    tensors: dict[str, Any] = dict(content.get("MyModel", content))
    for prefix, original in REPEATED.items():
        for name in [name for name in tensors if name.startswith(prefix)]:
            if not torch.equal(tensors.pop(name), tensors[original + name.removeprefix(prefix)]):
                raise UserError(
                    f"the published file has two different tensors for {name}: give one that was not changed"
                )
    tensors = {name: value for name, value in tensors.items() if not name.startswith(UNUSED)}
    names = {key(method, name): name for name in method.learnable()}
    missing, surplus = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    if missing or surplus:
        listed = [f"missing {name}" for name in missing[:4]] + [f"surplus {name}" for name in surplus[:4]]
        raise UserError(
            f"the published file does not fit {type(method).__name__} as configured: {'; '.join(listed)}: set the options"
            " that it was trained with"
        )
    shapes = {name: parameter.shape for name, parameter in method.learnable().items()}
    state = {}
    for theirs, ours in names.items():
        value = tensors[theirs].to(torch.float32)
        flat = ours.startswith(("flow_normal", "flow_abnormal")) and value.numel() == shapes[ours].numel()
        state[ours] = value.reshape(shapes[ours]) if flat else value
    return state


LAYOUT = PublishedLayout(key=key, whole=whole)
