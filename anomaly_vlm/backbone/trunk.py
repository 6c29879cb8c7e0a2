"""`TrunkBackbone`: the image trunk of any timm model, frozen, for methods that read no text: stages at strides 4, 8, 16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from anomaly_vlm.backbone.convnext import ImagePyramid
from anomaly_vlm.backbone.frozen import FrozenTower
from anomaly_vlm.backbone.taps import Strided
from anomaly_vlm.backbone.timm_weights import load_timm
from anomaly_vlm.errors import UserError

STRIDES = (4, 8, 16)


class TrunkBackbone(FrozenTower, Strided):
    """A frozen timm model of which only the stages at strides 4, 8 and 16 are run.

    Args:
        model: A timm model with `feature_info` and `forward_intermediates` (ResNet, ConvNeXt, ...).
        image_size: Side in pixels of square inputs by default.
        name: See `FrozenTower`.
        weights: See `FrozenTower`.
        mean: See `FrozenTower`.
        std: See `FrozenTower`.
        is_random: See `FrozenTower`.

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
        name: A timm architecture (`wide_resnet50_2`).
        pretrained: timm's tag of its weights (`racm_in1k`), from timm's cache or the hub; it also gives mean and
            deviation.
        weights: Local file with them instead, timm's key layout (torchvision's ResNets have the same one).
        random_seed: Untrained weights, which tables then say; only together with neither of both.
        image_size: See `TrunkBackbone`.
        layers: A trunk has none to tap, so None.
        origin: Where the weights of a file come from, in words; None: the file's name.

    Raises:
        UserError: unknown architecture or tag, absent weights, a file of another layout.
    """
    if layers is not None:
        raise UserError(f"backbone.layers is {layers}: {name} has no layers to tap; set null")
    loaded = load_timm(name, pretrained=pretrained, weights=weights, random_seed=random_seed, origin=origin)
    return TrunkBackbone(
        loaded.model,
        name=name,
        weights=loaded.origin,
        mean=loaded.mean,
        std=loaded.std,
        image_size=image_size,
        is_random=random_seed is not None,
    )
