"""Architecture of the nano CLIP, its first weights, and its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from scipy.fft import dct
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.nano.words import FALLBACK

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 112, "layers": 8, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
TEMPERATURE = 0.07  # what similarities are divided by in training, and in most methods


def new_model(seed: int) -> open_clip.CLIP:
    """The model as training starts it; see `structured_start`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**ARCHITECTURE)
        structured_start(model)
        nn.init.normal_(model.token_embedding.weight, std=0.3)
        model.logit_scale.data.fill_(math.log(1 / TEMPERATURE))
    return model


def as_backbone(model: nn.Module, weights: str = "in training") -> ClipBackbone:
    """The suite's view of the model (frozen by it; training thaws what it trains)."""
    return ClipBackbone(
        model, name="nano CLIP", weights=weights, tokenizer=SimpleTokenizer(), activation="gelu", image_size=112
    )


# ---- first weights ---------------------------------------------------------------------------------------------------


def structured_start(model: open_clip.CLIP) -> None:
    """Image tower: cosine filters as patch embedding, attention that compares patches and subtracts what they share, sine
    positions, quiet MLPs. From there a few minutes of training get anywhere; from open_clip's own start they do not."""
    visual: Any = model.visual
    width = visual.conv1.out_channels
    visual.conv1.weight.data.copy_(_cosine_filters(width, visual.conv1.kernel_size[0]))
    grid = round((visual.positional_embedding.shape[0] - 1) ** 0.5)
    visual.positional_embedding.data.copy_(_sine_positions(grid, width))
    for block in visual.transformer.resblocks:
        turn, turn_value = (_rotation(width) for _ in range(2))
        q, k, v = block.attn.in_proj_weight.data.chunk(3)
        for part, base in ((q, turn * 0.7**0.5), (k, turn * 0.7**0.5), (v, turn_value)):
            part.copy_(base + 0.02 * torch.randn(width, width))
        block.attn.in_proj_bias.data.zero_()
        block.attn.out_proj.weight.data.copy_(-0.4 * turn_value.T + 0.02 * torch.randn(width, width))
        block.mlp.c_proj.weight.data.mul_(0.35)


def _rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n))[0]


def _cosine_filters(width: int, side: int) -> Tensor:
    """[width, 3, side, side]: half of them all cosine patterns of the brightness, a quarter the lowest of each of two colour
    differences, scaled so that each answers alike to natural pictures (whose spectrum falls with frequency), and turned."""
    basis = dct(np.eye(side), axis=0, norm="ortho")
    order = sorted(((i, j) for i in range(side) for j in range(side)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))
    colours = np.array([[1, 1, 1], [1, -1, 0], [0.5, 0.5, -1]]) / np.sqrt([[3.0], [2.0], [1.5]])
    counts = (min(width // 2, side * side), width // 4, width // 4)
    filters: list[np.ndarray] = []
    for colour, count, contrast in zip(colours, counts, (1.0, 0.25, 0.25), strict=True):
        for i, j in order[:count]:
            typical = contrast * side / (1 + 1.5 * math.hypot(i, j)) ** 1.2
            filters.append(colour[:, None, None] * np.outer(basis[i], basis[j]) / typical)
    bank = torch.tensor(np.stack(filters), dtype=torch.float32)
    return (_rotation(width) @ bank.flatten(1)).view_as(bank) * 1.5


def _sine_positions(grid: int, width: int) -> Tensor:
    """[1 + grid^2, width] of rows and columns in units of the whole picture; zero for the class token."""
    place = (torch.arange(grid) + 0.5) / grid
    waves = torch.linspace(0.5, 8.0, width // 8) * math.pi
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    parts = [f(p.flatten()[:, None] * waves) for p in (rows, columns) for f in (torch.sin, torch.cos)]
    table = torch.cat(parts, dim=1) * 0.3
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
