"""What a tower of the nano CLIP is asked in the comparison of recipes.

Do its patches tell damage? A linear probe and an MLP learn it from pictures of other families. Does it know the words for
damage? The zero-shot score tells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.source import Source
from anomaly_vlm.nano.model import stem_of
from anomaly_vlm.nano.zero_shot import loader, scores_and_cells, text_axis, top_mean

DAMAGED = 0.1  # share of a patch from which on it counts as damaged
BATCH, EPOCHS, RATE = 1024, 8, 0.005  # of the probes
HIDDEN = 128  # units of the MLP
VALUES = ("image_auroc", "pixel_auroc", "pixel_ap")


class Pictures(NamedTuple):
    """Pictures behind a stem.

    Attributes:
        stem: float16 [N, C, rows, columns], what it gives. label: int64 [N].
        cells: bool [N, rows * columns], damaged patches. category: N words.
    """

    stem: Tensor
    label: np.ndarray
    cells: Tensor
    category: list[str]


class Tokens(NamedTuple):
    """Of pictures: `cls` [N, C], `middle` and `last` [N, patches, Dv], after half of the blocks and after all."""

    cls: Tensor
    middle: Tensor
    last: Tensor


def asked(backbone: ClipBackbone, pictures: dict[str, Pictures], seed: int) -> dict[str, float]:
    """Values of a tower in percent: `linear_*` and `mlp_*` of the probes, `zero_shot_image_auroc`."""
    train, test, fresh = (pictures[name] for name in ("train", "test", "fresh"))
    given, asked_of = (patch_features(encode(backbone, part)) for part in (train, test))
    mean, std = given.mean((0, 1)), given.std((0, 1)).clamp(min=1e-6)
    given, asked_of = (given - mean) / std, (asked_of - mean) / std
    values: dict[str, float] = {}
    for name, hidden in (("linear", None), ("mlp", HIDDEN)):
        cells = probe(given, train.cells, asked_of, hidden=hidden, seed=seed)
        found = (
            roc_auc_score(test.label, top_mean(cells).numpy()),
            roc_auc_score(test.cells.flatten().numpy(), cells.flatten().numpy()),
            average_precision_score(test.cells.flatten().numpy(), cells.flatten().numpy()),
        )
        values |= {f"{name}_{value}": 100 * float(one) for value, one in zip(VALUES, found, strict=True)}
    tokens = encode(backbone, fresh)
    axes = {word: text_axis(backbone, word) for word in sorted(set(fresh.category))}
    axis = torch.stack([axes[word] for word in fresh.category])
    score, _ = scores_and_cells(backbone, tokens.cls, tokens.last, axis)
    return {**values, "zero_shot_image_auroc": 100 * float(roc_auc_score(fresh.label, score.numpy()))}


@torch.no_grad()
def read(backbone: ClipBackbone, source: Source, side: str) -> Pictures:
    """The pictures of a side of a source, with the pixels that methods see, behind a tower's stem."""
    parts: list[tuple[Tensor, np.ndarray, Tensor]] = []
    category: list[str] = []
    for item in loader(backbone, source, side=side):
        assert item.mask is not None  # drawn pictures have masks
        made = stem_of(backbone).features(item.image).half()
        share = F.adaptive_avg_pool2d(item.mask[:, None].float(), (made.shape[-2], made.shape[-1])).flatten(1)
        parts.append((made, item.label.numpy(), share >= DAMAGED))
        category += item.category
    stem, label, cells = zip(*parts, strict=True)
    return Pictures(torch.cat(stem), np.concatenate(label), torch.cat(cells), category)


@torch.no_grad()
def encode(backbone: ClipBackbone, pictures: Pictures) -> Tokens:
    """Runs the transformer behind the stem."""
    layers, parts = [backbone.num_layers // 2, backbone.num_layers], []
    for part in pictures.stem.split(32):
        x, grid = backbone.embed_map(stem_of(backbone).project(part.float()))
        tokens = backbone.encode_embedded(x, grid, layers=layers)
        parts.append((tokens.cls, *tokens.patches))
    return Tokens(*(torch.cat(each) for each in zip(*parts, strict=True)))


def patch_features(tokens: Tokens) -> Tensor:
    """What a probe sees of a patch: the tokens of both blocks, [N, patches, 2 Dv]."""
    return torch.cat([tokens.middle, tokens.last], dim=2)


def probe(given: Tensor, damaged: Tensor, asked_of: Tensor, *, hidden: int | None, seed: int) -> Tensor:
    """Learns from patches [N, P, D] which are `damaged` [N, P]; logits [M, P] of the patches `asked_of` [M, P, D].

    Args:
        given: Standardised features.
        damaged: Of them.
        asked_of: Features of other pictures, standardised alike.
        hidden: Units of the one hidden layer; None: a linear probe.
        seed: Of first weights and order.
    """
    x, y = given.flatten(0, 1), damaged.flatten().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = x.shape[1]
        head: nn.Module = nn.Linear(width, 1)
        if hidden is not None:
            head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=0.01)
    total = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=total, pct_start=0.1)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(head(x[rows])[:, 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        logits: Tensor = head(asked_of)[..., 0]
    return logits
