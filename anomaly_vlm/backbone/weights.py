"""Loads a backbone: weights by open_clip tag, hub name or local file, or random ones where the config says so."""

from __future__ import annotations

import copy
import functools
import logging
import socket
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from anomaly_vlm.backbone.clip import ClipBackbone
from anomaly_vlm.backbone.convnext import ConvNextBackbone, is_convnext
from anomaly_vlm.backbone.positions import PosResize
from anomaly_vlm.backbone.stem import put_stem
from anomaly_vlm.backbone.token_rows import FALLBACK, IDS, FewTokens
from anomaly_vlm.backbone.weight_files import fill_weights, read_weights, weights_path
from anomaly_vlm.errors import UserError, unknown_choice

HUB_PREFIX = "hf-hub:"
# What open_clip and timm raise for a configuration that is none, or that asks for weights which cannot be had.
NOT_BUILT = (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError, AttributeError, OSError, UserWarning)
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load_backbone(
    name: str,
    *,
    pretrained: str | None = None,
    weights: str | None = None,
    random_seed: int | None = None,
    architecture: Mapping[str, Any] | None = None,
    activation: Literal["auto", "gelu", "quick_gelu"] = "auto",
    pos_resize: PosResize = "bicubic",
    image_size: int | None = None,
    layers: Sequence[int] | None = None,
    origin: str | None = None,
    stem: Mapping[str, Any] | None = None,
) -> Any:
    """Builds the model, fills it with weights and freezes it.

    Args:
        name: An open_clip architecture (`ViT-L-14-336`), `hf-hub:ORG/NAME`, or any name where `architecture` is given.
        pretrained: open_clip tag of the weights (`openai`, `laion400m_e31`). With `weights` it says which weights the
            file holds and nothing is downloaded.
        weights: Local file, `.safetensors` or `.pt`/`.pth`/`.bin` (read with `weights_only`), open_clip's key layout;
            `package:FILE` is one that this package ships.
        random_seed: Untrained weights drawn from this seed; only together with neither `pretrained` nor `weights`.
        architecture: open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`) for a model of one's
            own.
        activation: `auto` is what the weights were trained with: the tag's own flag, else the model config's.
        pos_resize: See `ClipBackbone`; a ConvNeXt has no positions.
        image_size: See `ClipBackbone`.
        layers: See `ClipBackbone`; a ConvNeXt has no layers to tap.
        origin: Where the weights of a file come from, in words for tables; None: the file's name.
        stem: `name` and `stages` of a `HybridStem` in place of the patch embedding; None: open_clip's own. Not for
            weights that are downloaded.

    Returns:
        A `ClipBackbone`, or a `ConvNextBackbone` where the image tower is a timm ConvNeXt.

    Raises:
        UserError: Unknown architecture or tag, absent weights, a file of another layout.
    """
    _check_one_source(name, pretrained, weights, random_seed)
    config = _model_config(name, architecture)
    tag = _tag_config(name, pretrained, custom=architecture is not None)
    model, source, state = _with_weights(name, config, tag, pretrained, weights, random_seed, stem)
    tokenizer: Any = open_clip.get_tokenizer(name) if name.startswith(HUB_PREFIX) else _clip_tokenizer(config)
    if FALLBACK in state:
        tokenizer = FewTokens(tokenizer, state[IDS], int(state[FALLBACK]), tokenizer.decode)
    shared: dict[str, Any] = {
        "name": name,
        "weights": (weights and origin) or source,  # a name of one's own is for weights of a file
        "tokenizer": tokenizer,
        "activation": resolve_activation(activation, tag, config or {}),
        "mean": tag.get("mean", open_clip.OPENAI_DATASET_MEAN),
        "std": tag.get("std", open_clip.OPENAI_DATASET_STD),
        "image_size": image_size,
        "is_random": random_seed is not None,
    }
    return _with_interface(model, shared, pos_resize, layers)


def _check_one_source(name: str, pretrained: str | None, weights: str | None, random_seed: int | None) -> None:
    """Raises a `UserError` unless trained weights or untrained ones are asked for, and not both."""
    if random_seed is not None and (pretrained or weights):
        raise UserError(
            "backbone: random_seed asks for untrained weights, pretrained/weights for trained ones: give only one"
        )
    if random_seed is None and not (pretrained or weights or name.startswith(HUB_PREFIX)):
        raise UserError(
            f"backbone '{name}' names no weights: set backbone.pretrained=TAG, backbone.weights=FILE, or"
            " backbone.random_seed=0 for untrained ones"
        )


def _with_weights(
    name: str,
    config: dict[str, Any] | None,
    tag: Mapping[str, Any],
    pretrained: str | None,
    weights: str | None,
    random_seed: int | None,
    stem: Mapping[str, Any] | None,
) -> tuple[nn.Module, str, Mapping[str, Tensor]]:
    """The model with its weights, where they come from in words, and the state dict of a file (else empty)."""
    if weights is not None:
        state = read_weights(weights_path(weights))
        model = fill_weights(_build(config, name, stem=stem), state, weights)
        return model, f"{pretrained + ' from ' if pretrained else ''}file {Path(weights).name}", state
    if random_seed is not None:
        return _build(config, name, random_seed, stem=stem), f"random weights (seed {random_seed})", {}
    if stem is not None:
        raise UserError(f"backbone '{name}': downloaded weights have no stem: leave backbone.stem out")
    return _download(name, pretrained, tag), pretrained or "hub weights", {}


def _with_interface(
    model: nn.Module, shared: Mapping[str, Any], pos_resize: PosResize, layers: Sequence[int] | None
) -> ClipBackbone | ConvNextBackbone:
    """The model as the backbone of its kind of image tower, with the options that both kinds share."""
    if is_convnext(model):
        if layers is not None:
            raise UserError(
                f"backbone.layers is {list(layers)}: {shared['name']} is a ConvNeXt, which has no layers to tap; set null"
            )
        return ConvNextBackbone(model, **shared)
    return ClipBackbone(model, **shared, pos_resize=pos_resize, layers=layers)


def _model_config(name: str, architecture: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """open_clip's model config; None for hub names, which bring their own."""
    if architecture is not None:
        return copy.deepcopy(dict(architecture))
    if name.startswith(HUB_PREFIX):
        return None
    config: dict[str, Any] | None = open_clip.get_model_config(name)
    if config is None:
        raise unknown_choice("open_clip architecture", name, open_clip.list_models())
    return config


def _tag_config(name: str, tag: str | None, *, custom: bool) -> dict[str, Any]:
    if tag is None or custom or name.startswith(HUB_PREFIX):
        return {}
    if not open_clip.pretrained.is_pretrained_cfg(name, tag):
        raise unknown_choice(f"pretrained tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name))
    published: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    return published


def resolve_activation(asked: str, tag_config: Mapping[str, Any], model_config: Mapping[str, Any]) -> Any:
    """`auto` becomes what the weights were trained with (open_clip's `ViT-L-14-336` says GELU, its tag QuickGELU)."""
    if asked != "auto":
        return asked
    return "quick_gelu" if tag_config.get("quick_gelu") or model_config.get("quick_gelu") else "gelu"


def _clip_tokenizer(config: Mapping[str, Any] | None) -> SimpleTokenizer:
    return _tokenizer((config or {}).get("text_cfg", {}).get("context_length", 77))


@functools.cache  # reading its table of 49,000 merges takes a sixth of a second
def _tokenizer(context_length: int) -> SimpleTokenizer:
    return SimpleTokenizer(context_length=context_length)


def _build(
    config: dict[str, Any] | None, name: str, seed: int | None = None, *, stem: Mapping[str, Any] | None = None
) -> nn.Module:
    if config is None:
        raise UserError(f"backbone '{name}': a hub name brings its own weights: leave weights and random_seed out")
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0 if seed is None else seed)
        warnings.filterwarnings("error", "Initializing zero-element tensors")
        try:
            model: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
        except NOT_BUILT as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise UserError(
                f"backbone.architecture of '{name}' cannot be built ({reason}): give an open_clip configuration"
            ) from error
        if stem is not None:
            put_stem(model, stem)
    return model


def _download(name: str, tag: str | None, tag_config: Mapping[str, Any]) -> nn.Module:
    """The model with its published weights, from open_clip's cache or the hub."""
    hub_name = name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else tag_config.get("hf_hub", "").strip("/")
    wanted = f"weights '{tag}' of {name}" if tag else f"model '{name}'"
    mend = "run once with a network to fill the cache, or set backbone.weights=FILE to a local file"
    if hub_name and not hub_has(hub_name, HUB_FILES) and not hub_answers():
        raise UserError(f"{wanted} are not in the local cache and the model hub cannot be reached: {mend}")
    noisy = logging.getLogger()
    try:
        noisy.disabled = True  # open_clip and the hub client log to the root what the error below says in one line
        with warnings.catch_warnings():
            # open_clip warns that activation and tag may differ; `activation` decides that
            warnings.simplefilter("ignore")
            created: nn.Module = open_clip.create_model(name, pretrained=tag, precision="fp32")
            return created
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"{wanted} could not be loaded ({reason}): {mend}") from error
    finally:
        noisy.disabled = False


def hub_has(repository: str, files: Sequence[str]) -> bool:
    """Whether one of these files of a hub repository is in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    return bool(repository) and any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def hub_answers(timeout_s: float = 3.0) -> bool:
    """A quick connection test; the hub client itself would retry for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout_s):
            return True
    except OSError:
        # a proxy resolves names itself: only its absence makes the failed connection final
        import urllib.request

        return bool(urllib.request.getproxies())
