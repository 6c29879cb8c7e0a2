"""Architecture of the nano CLIP, its first weights, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, HybridStem, put_stem
from anomaly_vlm.errors import UserError
from anomaly_vlm.nano import teacher
from anomaly_vlm.nano.words import FALLBACK

WIDTH, LAYERS = 128, 8  # of the image tower
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 224, "layers": LAYERS, "width": WIDTH, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
STEM: dict[str, Any] = {"name": teacher.NAME, "stages": teacher.STAGES}
TEMPERATURE = 0.07  # what similarities are divided by in training, and in most methods
DAMPING = 0.1  # of what each block adds to its input at the start of training


def architecture(*, width: int, layers: int) -> dict[str, Any]:
    """open_clip's description of the model with an image tower of `layers` blocks of that width.

    Raises:
        UserError: A width that heads of 32 channels do not share out, or no block.
    """
    head = ARCHITECTURE["vision_cfg"]["head_width"]
    if width < head or width % head:
        raise UserError(f"width is {width}: give a multiple of {head}, such as 128 or 192")
    if layers < 1:
        raise UserError(f"layers is {layers}: give 1 or more")
    return {**ARCHITECTURE, "vision_cfg": {**ARCHITECTURE["vision_cfg"], "width": width, "layers": layers}}


def new_model(
    seed: int, network: nn.Module | None = None, *, width: int = WIDTH, layers: int = LAYERS
) -> open_clip.CLIP:
    """The model as training starts it: the teacher's first stages under blocks that change next to nothing.

    Args:
        seed: Of the blocks that are drawn at random.
        network: The teacher; None leaves the stem untrained.
        width: Channels of the image tower's tokens.
        layers: Blocks of the image tower.

    Raises:
        UserError: See `architecture`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**architecture(width=width, layers=layers))
        put_stem(model, STEM)
        _quiet_start(model.visual)
        nn.init.normal_(model.token_embedding.weight, std=0.3)
        model.logit_scale.data.fill_(math.log(1 / TEMPERATURE))
    stem = stem_of(model)
    assert stem.normalise.bias is not None
    if network is not None:
        own = stem.state_dict()
        stem.load_state_dict({**own, **{key: value for key, value in network.state_dict().items() if key in own}})
    both = list(zip(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, strict=True))
    stem.set_input(
        scale=[std / teacher.STD for _, std in both], shift=[(mean - teacher.MEAN) / teacher.STD for mean, _ in both]
    )
    return model


def stem_of(model: Any) -> HybridStem:
    """The stem of the image tower."""
    stem = model.visual.conv1
    assert isinstance(stem, HybridStem)
    return stem


def as_backbone(model: nn.Module, weights: str = "in training") -> ClipBackbone:
    """The suite's view of the model (frozen by it; training thaws what it trains)."""
    return ClipBackbone(model, name="nano CLIP", weights=weights, tokenizer=SimpleTokenizer(), activation="gelu")


# ---- first weights ---------------------------------------------------------------------------------------------------


def _quiet_start(visual: Any) -> None:
    """Sine positions and damped blocks, so that the tower starts as its stem's features and loses none of them."""
    table = visual.positional_embedding
    table.data.copy_(_sine_positions(round((table.shape[0] - 1) ** 0.5), table.shape[1]))
    for block in visual.transformer.resblocks:
        block.attn.out_proj.weight.data.mul_(DAMPING)
        block.mlp.c_proj.weight.data.mul_(DAMPING)


def whiten_projection(stem: HybridStem, mean: Tensor, std: Tensor, seed: int) -> None:
    """Starts `project` as an isometry of the standardised features; `mean`, `std` [channels] are of the training pool."""
    width, channels = stem.project.weight.shape[:2]
    assert stem.project.bias is not None
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(max(width, channels), min(width, channels), generator=generator))[0]
    turn = (turn if width >= channels else turn.T) / std
    stem.project.weight.data.copy_(turn[..., None, None])
    stem.project.bias.data.copy_(-turn @ mean)


def _sine_positions(grid: int, width: int) -> Tensor:
    """[1 + grid^2, width] of rows and columns in units of the whole picture; zero for the class token."""
    place = (torch.arange(grid) + 0.5) / grid
    waves = torch.linspace(0.5, 8.0, width // 8) * math.pi
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    parts = [f(p.flatten()[:, None] * waves) for p in (rows, columns) for f in (torch.sin, torch.cos)]
    table = torch.cat(parts, dim=1) * 0.2
    table = torch.cat([table, torch.zeros(len(table), width - table.shape[1])], dim=1)
    return torch.cat([torch.zeros(1, width), table])


# ---- file ------------------------------------------------------------------------------------------------------------


def save_model(model: nn.Module, ids: np.ndarray, path: Path) -> None:
    """Writes float16 weights with the token rows `ids` only, plus the id of the row that stands for all others."""
    from safetensors.torch import save_file

    state = {key: value.detach() for key, value in model.state_dict().items()}
    rows = torch.from_numpy(ids)
    table = state.pop("token_embedding.weight")
    out = {key: value.half().contiguous() for key, value in state.items()}
    out["token_embedding.ids"] = rows.int()
    out["token_embedding.rows"] = table[rows].half().contiguous()
    out["token_embedding.fallback"] = torch.tensor(SimpleTokenizer().encode(FALLBACK)[0], dtype=torch.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path)
