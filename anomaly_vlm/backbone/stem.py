"""`HybridStem`: the first stages of a convolutional network as the patch embedding of a ViT.

The hybrid architecture of Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1: the tokens of the
transformer are the cells of a feature map instead of raw patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import timm
import torch
from torch import Tensor, nn

from anomaly_vlm.backbone.folded import Folded
from anomaly_vlm.errors import UserError, unknown_choice


class HybridStem(nn.Module):
    """Replaces `conv1` of an open_clip ViT: images [B, 3, H, W] -> token map [B, width, H / stride, W / stride].

    Parts, in this order: `normalise`, an affine map of each colour channel (the network's own input statistics on top of the
    backbone's); `conv_stem`, `bn1` and the first `blocks` of a timm EfficientNet; `project`, a 1 x 1 convolution to `width`.

    Args:
        name: timm architecture (`tf_efficientnet_lite0`).
        stages: How many of its stages are used.
        width: Channels of the tokens.

    Raises:
        UserError: No EfficientNet of timm, or fewer stages than asked for.
    """

    def __init__(self, name: str, *, stages: int, width: int) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise unknown_choice("backbone.stem.name", name, timm.list_models("*efficientnet_lite*"))
        network: Any = timm.create_model(name)
        if not all(hasattr(network, part) for part in ("conv_stem", "bn1", "blocks", "feature_info")):
            raise UserError(f"backbone.stem.name is '{name}', which is no EfficientNet of timm: choose one of those")
        if not 1 <= stages <= len(network.blocks):
            raise UserError(f"backbone.stem.stages is {stages}: {name} has stages 1 to {len(network.blocks)}")
        last = f"blocks.{stages - 1}"
        facts = [stage for stage in network.feature_info if stage["module"].startswith(last)]
        if not facts:
            ends = [int(stage["module"].split(".")[1]) + 1 for stage in network.feature_info]
            raise UserError(f"backbone.stem.stages is {stages}: {name} has features behind stages {ends}")
        self.normalise = nn.Conv2d(3, 3, 1, groups=3)
        self.conv_stem, self.bn1, self.blocks = network.conv_stem, network.bn1, network.blocks[:stages]
        self.channels, stride = int(facts[0]["num_chs"]), int(facts[0]["reduction"])
        self.project = nn.Conv2d(self.channels, width, 1)
        self.out_channels, self.kernel_size = width, (stride, stride)  # what readers of `conv1` ask for
        self._folded: Folded | None = None
        self.set_input(scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0))

    def set_input(self, *, scale: Sequence[float], shift: Sequence[float]) -> None:
        """Sets `normalise`: each colour channel of the input times `scale` plus `shift`."""
        with torch.no_grad():
            self.normalise.weight.copy_(torch.tensor(scale)[:, None, None, None])
            cast(Tensor, self.normalise.bias).copy_(torch.tensor(shift))

    def features(self, images: Tensor) -> Tensor:
        """The feature map [B, channels, rows, columns] before the projection."""
        x = self.normalise(images).contiguous(memory_format=torch.channels_last)  # a quarter faster on CPUs
        whole = all(side % stride == 0 for side, stride in zip(x.shape[-2:], self.kernel_size, strict=True))
        if self.training or not whole or torch.compiler.is_exporting():
            layers: nn.Module = self._network()
        else:
            if self._folded is None or not self._folded.is_current():
                self._folded = Folded(self._network())
            layers = self._folded.network
        features: Tensor = layers(x)
        return features

    def _network(self) -> nn.Sequential:
        return nn.Sequential(self.conv_stem, self.bn1, self.blocks).train(self.training)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._folded = None  # its tensors move, or change their type
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._folded = None
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """Patch features [B, width, rows, columns] of images [B, 3, H, W] in [0, 1] after normalisation."""
        projected: Tensor = self.project(self.features(images))
        return projected


def put_stem(model: Any, stem: Mapping[str, Any]) -> None:
    """Replaces the patch embedding of an open_clip ViT by a `HybridStem` with these options.

    Raises:
        UserError: Wrong options, or a patch size other than the stem's stride.
    """
    unknown = sorted(set(stem) - {"name", "stages"})
    if unknown or "name" not in stem or "stages" not in stem:
        raise UserError(f"backbone.stem is {dict(stem)}: give name and stages, and nothing else")
    conv = model.visual.conv1
    made = HybridStem(stem["name"], stages=stem["stages"], width=conv.out_channels)
    if made.kernel_size != tuple(conv.kernel_size):
        raise UserError(
            f"backbone.stem has stride {made.kernel_size[0]}: set vision_cfg.patch_size to it (it is {conv.kernel_size[0]})"
        )
    model.visual.conv1 = made
