"""The suite from Python: backbones, methods and checkpoints by name, without a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from anomaly_vlm.methods.base.method import AnomalyMethod
from anomaly_vlm.runs.build import build_method
from anomaly_vlm.runs.checkpoints import PUBLISHED, Checkpoint
from anomaly_vlm.runs.compose import compose
from anomaly_vlm.runs.configs import checked
from anomaly_vlm.runs.instantiate import instantiate


def load_backbone(name: str = "nano", **options: Any) -> Any:
    """A frozen backbone by its name in `conf/backbone/`.

    Args:
        name: Such as `nano`, `vit_l14_336` or `tiny_random`.
        options: Changes to its keys, such as `weights="file.safetensors"` or `image_size=240`.

    Returns:
        A `ClipBackbone`, or another tower for vision-only and convolutional ones.

    Example:
        >>> from anomaly_vlm import load_backbone
        >>> load_backbone("tiny_random").num_layers
        8
    """
    words = [f"backbone.{key}={value}" for key, value in options.items()]
    return instantiate(compose(["method=linear_heads", f"backbone={name}", *words]).backbone)


def load_method(
    name: str, backbone: Any = "nano", *, overrides: list[str] | None = None, **options: Any
) -> AnomalyMethod:
    """A method by its name in `conf/method/`, as it starts, with the preset of its backbone.

    Args:
        name: Such as `winclip` or `adaclip`.
        backbone: A name in `conf/backbone/`, or a loaded backbone, which several methods may share; None for the
            method's embedded default (`nano`, `nano_convnext` for road scenes).
        overrides: Further overrides of the configuration, as on the command line.
        options: Options of the method's constructor.

    Returns:
        The method, ready to be called: `method(images, category="gear")`.

    Example:
        >>> import torch
        >>> from anomaly_vlm import load_method
        >>> method = load_method("winclip", backbone="tiny_random")
        >>> method(torch.rand(2, 3, 90, 70), category="gear").map.shape
        torch.Size([2, 90, 70])
    """
    named = backbone is None or isinstance(backbone, str)
    words = [f"method={name}", *([f"backbone={backbone}"] if backbone and named else []), *(overrides or [])]
    cfg = checked(compose(words))
    with open_dict(cfg):  # the YAML of a method lists only what differs from its constructor, which checks the rest
        cfg.method.update(options)
    loaded = instantiate(cfg.backbone, trusted=cfg.trust) if named else backbone
    if not named:
        cfg.image_size = loaded.image_size
    return build_method(cfg, loaded, **_collaborators(cfg)).eval()


def load_checkpoint(
    path: str | Path, *, method: str | None = None, backbone: str = "nano", trusted: Sequence[str] = ()
) -> AnomalyMethod:
    """A method with learned weights.

    Args:
        path: A `.ckpt` that `train` wrote; it knows its method, backbone and options. `published:FILE` for the
            published code's layout.
        method: Of a published file.
        backbone: Of a published file.
        trusted: Packages of your own that the file may name, as `trust=[mypackage]` on the command line: their code runs.

    Returns:
        The method, ready to be called: `method(images, category="gear")`.

    Raises:
        UserError: The file is missing, damaged, does not fit, or names code that is not trusted.
    """
    spec = str(path)
    checkpoint = Checkpoint.read(spec, trusted=trusted)
    if spec.startswith(PUBLISHED):
        loaded = load_method(str(method), backbone, overrides=[f"trust=[{','.join(trusted)}]"])
    else:
        cfg = checkpoint.config
        loaded = build_method(cfg, instantiate(cfg.backbone, trusted=cfg.trust), **_collaborators(cfg))
    checkpoint.load_into(loaded)
    return loaded.eval()


def _collaborators(cfg: DictConfig) -> dict[str, Any]:
    """Detector and segmenter, where the configuration has them."""
    groups = [group for group in ("detector", "segmenter") if cfg.get(group) is not None]
    return {group: instantiate(cfg[group], trusted=cfg.trust) for group in groups}
