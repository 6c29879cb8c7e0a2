"""`ConvNextBackbone`: a frozen open_clip model with a ConvNeXt image tower, for dense methods at any image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from anomaly_vlm.backbone.frozen import Activation, FrozenClip
from anomaly_vlm.backbone.taps import Strided
from anomaly_vlm.errors import UserError

STRIDES = (4, 8, 16, 32)


@dataclass
class ImagePyramid:
    """What the trunk makes of a batch.

    Attributes:
        maps: [B, C_l, H / stride, W / stride] at strides 4, 8, 16, 32, as the stages give them; without the last of a
            `TrunkBackbone`.
    """

    maps: list[Tensor]

    @property
    def dense(self) -> Tensor:
        """The dense CLIP feature [B, C, H / 32, W / 32]: the last stage, which `project` takes into the joint space."""
        return self.maps[-1]


class ConvNextBackbone(FrozenClip, Strided):
    """A frozen open_clip CLIP with a timm ConvNeXt image tower; the text half is `ClipBackbone`'s.

    Args:
        model: See `ClipBackbone`.
        name: See `ClipBackbone`.
        weights: See `ClipBackbone`.
        tokenizer: See `ClipBackbone`.
        mean: See `ClipBackbone`.
        std: See `ClipBackbone`.
        is_random: See `ClipBackbone`.
        activation: Activation of the text tower; the trunk keeps its own.
        image_size: Side in pixels of square inputs; methods for road scenes keep each image's own size instead.

    Raises:
        UserError: the image tower is no ConvNeXt of four stages without pooling.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str,
        tokenizer: Callable[[list[str]], Tensor],
        activation: Activation = "gelu",
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        image_size: int | None = None,
        is_random: bool = False,
    ) -> None:
        super().__init__(
            model,
            name=name,
            weights=weights,
            tokenizer=tokenizer,
            activation=activation,
            mean=mean,
            std=std,
            is_random=is_random,
        )
        self.visual = _image_tower(model, name)
        self.requires_grad_(False).eval()
        facts = self.visual.trunk.feature_info
        self.widths: tuple[int, ...] = tuple(stage["num_chs"] for stage in facts)
        self.stride = STRIDES[-1]
        self.embed_dim: int = self.visual.head.mlp.fc2.out_features
        native = self.visual.image_size[0]
        self.image_size = self.checked_size(native if image_size is None else image_size)

    def pad(self, images: Tensor, *, value: float = 0) -> Tensor:
        """[B, ..., H, W] -> sides that are multiples of the stride; `value` at the right and the bottom.

        Normalised images get zeros, label maps 255.
        """
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.stride, 0, -height % self.stride), value=value)

    def encode_image(self, images: Tensor) -> ImagePyramid:
        """The four stages of the trunk.

        Args:
            images: [B, 3, H, W] normalised; H and W multiples of the stride (see `pad`).
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image of {height}x{width} pixels: sides must be multiples of {self.stride}: pad it first"
            )
        return ImagePyramid(self.visual.trunk.forward_intermediates(images, norm=False, intermediates_only=True))

    def project(self, pooled: Tensor) -> Tensor:
        """Pooled dense features [n, C] into the joint space [n, D] by CLIP's own head (LayerNorm, then the MLP)."""
        projected: Tensor = self.visual.head(self.visual.trunk.head(pooled[:, :, None, None]))
        return projected

    def trunk(self) -> nn.Module:
        """The convolutional trunk, whose parameters a method without pretrained weights may train."""
        trunk: nn.Module = self.visual.trunk
        return trunk


def is_convnext(model: Any) -> bool:
    """Whether an open_clip model's image tower is a timm ConvNeXt."""
    visual = model.visual
    return isinstance(visual, TimmModel) and type(visual.trunk).__name__ == "ConvNeXt"


def _image_tower(model: Any, name: str) -> TimmModel:
    visual = model.visual
    if not is_convnext(model) or len(visual.trunk.stages) != len(STRIDES) or not hasattr(visual.head, "mlp"):
        raise UserError(
            f"backbone '{name}': its image tower ({type(visual).__name__}) is no timm ConvNeXt with four stages and an MLP"
            " head: choose convnext_large_d_320 or tiny_convnext"
        )
    return visual
