"""Models of timm with their weights: by tag, from a local file, or random ones where the config says so."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from anomaly_vlm.backbone.weights import fill_weights, hub_answers, hub_has, read_weights, weights_path
from anomaly_vlm.errors import UserError, unknown_choice

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class TimmModel(NamedTuple):
    """A model with its weights. origin: where they come from, in words. mean, std: of the RGB channels in [0, 1]."""

    model: Any
    origin: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def load_timm(
    name: str,
    *,
    pretrained: str | None,
    weights: str | None,
    random_seed: int | None,
    origin: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> TimmModel:
    """Builds a timm model and fills it with weights.

    Args:
        name: A timm architecture (`vit_small_patch14_dinov2`).
        pretrained: timm's tag of its weights (`lvd142m`), from timm's cache or the hub; it also gives mean and
            deviation.
        weights: Local file with them instead: timm's key layout, or a published one that timm knows how to read.
        random_seed: Untrained weights, which tables then say; only together with neither of both.
        origin: Where the weights of a file come from, in words; None: the file's name.
        options: Arguments of timm's model (sizes).

    Raises:
        UserError: unknown architecture, tag or size, absent weights, a file of another layout.
    """
    if not timm.is_model(name):
        raise unknown_choice("timm architecture", name, timm.list_models(f"{name[:4]}*") or timm.list_models("vit_s*"))
    if random_seed is not None and (pretrained or weights):
        raise UserError(
            "backbone: random_seed asks for untrained weights, pretrained/weights for trained ones: give one"
        )
    if random_seed is None and not (pretrained or weights):
        raise UserError(
            f"backbone '{name}' names no weights: set backbone.pretrained=TAG, backbone.weights=FILE, or"
            " backbone.random_seed=0 for untrained ones"
        )
    facts: Any = timm.get_pretrained_cfg(name)
    if pretrained is not None:
        tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{name}.*")]
        if pretrained not in tags:
            raise unknown_choice(f"pretrained tag of {name}", pretrained, tags)
        facts = timm.get_pretrained_cfg(f"{name}.{pretrained}")
    options = dict(options or {})
    if weights is not None:
        model = _build(name, options)
        model = fill_weights(model, _own_layout(read_weights(weights_path(weights)), model), weights)
        origin = origin or f"{pretrained + ' from ' if pretrained else ''}file {weights_path(weights).name}"
    elif random_seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed)
            model = _build(name, options)
        origin = f"random weights (seed {random_seed})"
    else:
        model, origin = _download(f"{name}.{pretrained}", facts, options), str(pretrained)
    return TimmModel(model, origin, facts.mean, facts.std)


def _build(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except (TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise UserError(
            f"backbone '{name}' cannot be built with {dict(options)} ({reason}): change its sizes"
        ) from error


def _own_layout(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A published checkpoint's keys as timm names them, where its module for this model has a rule (SAM, DINOv2)."""
    rule = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if rule is None or state.keys() == model.state_dict().keys() else rule(state, model)


def _download(tagged: str, facts: Any, options: Mapping[str, Any]) -> nn.Module:
    """The model with timm's weights, from its cache or the hub."""
    mend = "run once with a network to fill the cache, or set backbone.weights=FILE to a local file"
    if not hub_has(facts.hf_hub_id or "", HUB_FILES) and not hub_answers():
        raise UserError(f"weights '{tagged}' are not in the local cache and the model hub cannot be reached: {mend}")
    noisy = logging.getLogger()
    try:
        noisy.disabled = True  # timm and the hub client log to the root what the error below says in one line
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(tagged, pretrained=True, **options)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"weights '{tagged}' could not be loaded ({reason}): {mend}") from error
    finally:
        noisy.disabled = False
