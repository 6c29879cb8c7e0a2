"""`TrunkBackbone`: the image trunk of any timm model, frozen, for methods that read no text: stages at strides 4, 8, 16."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from anomaly_vlm.backbone.convnext import ImagePyramid
from anomaly_vlm.backbone.frozen import FrozenTower
from anomaly_vlm.backbone.weights import fill_weights, hub_answers, hub_has, read_weights, weights_path
from anomaly_vlm.errors import UserError, unknown_choice

STRIDES = (4, 8, 16)


class TrunkBackbone(FrozenTower):
    """A frozen timm model of which only the stages at strides 4, 8 and 16 are run.

    Args:
        model: a timm model with `feature_info` and `forward_intermediates` (ResNet, ConvNeXt, ...).
        image_size: side in pixels of square inputs by default.
        name, weights, mean, std, is_random: see `FrozenTower`.

    Raises:
        UserError: the model has no stages at these strides.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        weights: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = 224,
        is_random: bool = False,
    ) -> None:
        super().__init__(name=name, weights=weights, mean=mean, std=std, is_random=is_random)
        strides = [stage["reduction"] for stage in getattr(model, "feature_info", [])]
        if not hasattr(model, "forward_intermediates") or not set(STRIDES) <= set(strides):
            raise UserError(
                f"backbone '{name}' has stages at strides {strides}, not at 4, 8 and 16: choose a ResNet or a ConvNeXt"
            )
        self.visual = model
        self._stages = [strides.index(stride) for stride in STRIDES]
        self.stride = STRIDES[-1]
        self.requires_grad_(False).eval()
        self.image_size = self.checked_size(image_size)

    def checked_size(self, size: int) -> int:
        """`size`, or a `UserError` where it is no positive multiple of the last stride."""
        if size <= 0 or size % self.stride:
            raise UserError(
                f"image_size {size}: {self.name} needs a positive multiple of its stride {self.stride}, such as"
                f" {max(1, round(size / self.stride)) * self.stride}"
            )
        return size

    def encode_image(self, images: Tensor) -> ImagePyramid:
        """The three stages of normalised images [B, 3, H, W]; H and W multiples of 16."""
        return ImagePyramid(
            self.visual.forward_intermediates(
                images, indices=self._stages, norm=False, stop_early=True, intermediates_only=True
            )
        )


def load_trunk(
    name: str,
    *,
    pretrained: str | None = None,
    weights: str | None = None,
    random_seed: int | None = None,
    image_size: int = 224,
    layers: None = None,
    origin: str | None = None,
) -> TrunkBackbone:
    """Builds a timm model, fills it with weights and freezes it.

    Args:
        name: a timm architecture (`wide_resnet50_2`).
        pretrained: timm's tag of its weights (`racm_in1k`), from timm's cache or the hub; it also gives mean and deviation.
        weights: local file with them instead, timm's key layout (torchvision's ResNets have the same one).
        random_seed: untrained weights, which tables then say; only together with neither of both.
        image_size: see `TrunkBackbone`.
        layers: a trunk has none to tap, so None.
        origin: where the weights of a file come from, in words; None: the file's name.

    Raises:
        UserError: unknown architecture or tag, absent weights, a file of another layout.
    """
    if not timm.is_model(name):
        raise unknown_choice(
            "timm architecture", name, timm.list_models(f"{name[:4]}*") or timm.list_models("*resnet50*")
        )
    if layers is not None:
        raise UserError(f"backbone.layers is {layers}: {name} has no layers to tap; set null")
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
    if weights is not None:
        model: Any = fill_weights(timm.create_model(name), read_weights(weights_path(weights)), weights)
        origin = origin or f"{pretrained + ' from ' if pretrained else ''}file {weights_path(weights).name}"
    elif random_seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed)
            model = timm.create_model(name)
        origin = f"random weights (seed {random_seed})"
    else:
        model, origin = _download(f"{name}.{pretrained}", facts), pretrained
    return TrunkBackbone(
        model,
        name=name,
        weights=str(origin),
        mean=facts.mean,
        std=facts.std,
        image_size=image_size,
        is_random=random_seed is not None,
    )


def _download(tagged: str, facts: Any) -> Any:
    """The model with timm's weights, from its cache or the hub."""
    mend = "run once with a network to fill the cache, or set backbone.weights=FILE to a local file"
    if not hub_has(facts.hf_hub_id or "", ("model.safetensors", "pytorch_model.bin")) and not hub_answers():
        raise UserError(
            f"weights '{tagged}' are not in the local cache and the model hub cannot be reached: {mend}; backbone="
            "nano_convnext ships with the package"
        )
    noisy = logging.getLogger()
    try:
        noisy.disabled = True  # timm and the hub client log to the root what the error below says in one line
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(tagged, pretrained=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:150]
        raise UserError(f"weights '{tagged}' could not be loaded ({reason}): {mend}") from error
    finally:
        noisy.disabled = False
