"""Loads a backbone: weights by open_clip tag, hub name or local file, or random ones where the config says so."""

from __future__ import annotations

import copy
import logging
import socket
import warnings
import zipfile
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
from anomaly_vlm.backbone.token_rows import FALLBACK, IDS, FewTokens, whole_table
from anomaly_vlm.errors import UserError, unknown_choice

HUB_PREFIX = "hf-hub:"
PACKAGE = "package:"
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

    Returns:
        A `ClipBackbone`, or a `ConvNextBackbone` where the image tower is a timm ConvNeXt.

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

    Raises:
        UserError: unknown architecture or tag, absent weights, a file of another layout.
    """
    if random_seed is not None and (pretrained or weights):
        raise UserError(
            "backbone: random_seed asks for untrained weights, pretrained/weights for trained ones: give only one"
        )
    if random_seed is None and not (pretrained or weights or name.startswith(HUB_PREFIX)):
        raise UserError(
            f"backbone '{name}' names no weights: set backbone.pretrained=TAG, backbone.weights=FILE, or"
            " backbone.random_seed=0 for untrained ones"
        )
    config = _model_config(name, architecture)
    tag = _tag_config(name, pretrained, custom=architecture is not None)
    if weights is not None:
        state = read_weights(weights_path(weights))
        model = fill_weights(_build(config, name, stem=stem), state, weights)
        origin = origin or f"{pretrained + ' from ' if pretrained else ''}file {Path(weights).name}"
    elif random_seed is not None:
        model = _build(config, name, random_seed, stem=stem)
        origin = f"random weights (seed {random_seed})"
    elif stem is not None:
        raise UserError(f"backbone '{name}': downloaded weights have no stem: leave backbone.stem out")
    else:
        model = _download(name, pretrained, tag)
        origin = pretrained or "hub weights"
    tokenizer: Any = open_clip.get_tokenizer(name) if name.startswith(HUB_PREFIX) else _clip_tokenizer(config)
    if weights is not None and FALLBACK in state:
        tokenizer = FewTokens(tokenizer, state[IDS], int(state[FALLBACK]), tokenizer.decode)
    shared: dict[str, Any] = {
        "name": name,
        "weights": origin,
        "tokenizer": tokenizer,
        "activation": resolve_activation(activation, tag, config or {}),
        "mean": tag.get("mean", open_clip.OPENAI_DATASET_MEAN),
        "std": tag.get("std", open_clip.OPENAI_DATASET_STD),
        "image_size": image_size,
        "is_random": random_seed is not None,
    }
    if is_convnext(model):
        if layers is not None:
            raise UserError(
                f"backbone.layers is {list(layers)}: {name} is a ConvNeXt, which has no layers to tap; set null"
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
    text = (config or {}).get("text_cfg", {})
    return SimpleTokenizer(context_length=text.get("context_length", 77))


def _build(
    config: dict[str, Any] | None, name: str, seed: int | None = None, *, stem: Mapping[str, Any] | None = None
) -> nn.Module:
    if config is None:
        raise UserError(f"backbone '{name}': a hub name brings its own weights: leave weights and random_seed out")
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
        if stem is not None:
            put_stem(model, stem)
    built: nn.Module = model
    return built


# ---- local files -----------------------------------------------------------------------------------------------------


def weights_path(weights: str) -> Path:
    """The file that `backbone.weights` names."""
    if weights.startswith(PACKAGE):
        return Path(__file__).parent.parent / weights.removeprefix(PACKAGE)
    return Path(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file or a PyTorch file (read with `weights_only=True`).

    Token embeddings stored as the rows in use (`token_embedding.ids` [n], `token_embedding.rows` [n, D]) stay as they are.

    Raises:
        UserError: the file is missing, damaged, a TorchScript archive, or needs code to load.
    """
    if not path.is_file():
        raise UserError(f"weights file '{path}' does not exist: give an existing .safetensors or .pt file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"weights file '{path}' is no readable safetensors file ({error}): fetch it again"
            ) from error
    if is_torchscript(path):
        raise UserError(
            f"weights file '{path}' is a TorchScript archive, which can run code: convert it once with"
            f" 'anomaly-vlm convert-weights {path}' and use the .safetensors file that it writes"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch reports damaged and unsafe files by many classes
        reason = str(error).splitlines()[0][:150]
        raise UserError(
            f"weights file '{path}' does not load with weights_only=True ({reason}): give a plain state dict"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"weights file '{path}' holds no state dict (names to tensors): give one in open_clip's key layout"
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive holds a TorchScript program (OpenAI published its weights so)."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())


def fill_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> nn.Module:
    """Loads `state` strictly, as float32; every missing, surplus or misshaped key is named."""
    own = model.state_dict()
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    if "token_embedding.weight" in own:
        state = whole_table(state, own["token_embedding.weight"])
    wrong = [f"missing {key}" for key in own if key not in state]
    wrong += [f"surplus {key}" for key in state if key not in own]
    wrong += [
        f"{key} is {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"weights file '{source}' does not fit the architecture: {'; '.join(wrong[:4])}{more}: choose its backbone"
        )
    model.load_state_dict(state)
    return model


def convert_torchscript(path: Path, target: Path | None = None) -> Path:
    """Turns OpenAI's TorchScript archive into a safetensors file in open_clip's key layout (float32).

    Runs the loader of a TorchScript archive, which a malicious file could exploit: only for files of known origin.

    Returns:
        The file written, beside the archive unless `target` is given.
    """
    from safetensors.torch import save_file

    if not path.is_file():
        raise UserError(f"'{path}' does not exist: give OpenAI's .pt archive")
    if not is_torchscript(path):
        raise UserError(
            f"'{path}' is no TorchScript archive: files of tensors load directly with backbone.weights={path}"
        )
    target = target or path.with_suffix(".safetensors")
    state = torch.jit.load(path, map_location="cpu").state_dict()
    for fact in ("input_resolution", "context_length", "vocab_size"):
        state.pop(fact, None)  # plain numbers that OpenAI keeps beside the weights
    save_file({key: value.float().contiguous() for key, value in state.items()}, target)
    return target


# ---- the hub ---------------------------------------------------------------------------------------------------------


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
            warnings.simplefilter(
                "ignore"
            )  # open_clip warns that activation and tag may differ; `activation` decides that
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
