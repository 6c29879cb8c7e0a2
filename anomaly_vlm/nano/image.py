"""Second stage: the image tower learns to see damage where it is and to name what it sees, against frozen texts."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.methods.winclip.windows import windows_of
from anomaly_vlm.nano.model import TEMPERATURE
from anomaly_vlm.nano.text import SCALE, Directions
from anomaly_vlm.nano.views import Views
from anomaly_vlm.nano.words import GENERIC_NOUN

FULL = 0.2  # a patch counts as damaged to the share of it that is, divided by this and cut at 1
WEIGHTS = {"patches": 1.0, "dice": 0.3, "state": 1.0, "rank": 0.5, "caption": 0.5, "material": 0.3, "windows": 1.0}
VV_SHARE = 0.1  # of the steps that train the V-V path's patches in place of the ordinary ones ..
WINDOW_SHARE = 0.15  # .. and of those that train windows of 2 to 4 patches, which WinCLIP asks
WINDOWS = 16  # of an image


def focal_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy, weighted by how wrong the probability is and by damage, which is rare."""
    with torch.no_grad():
        weight = (target - torch.sigmoid(logits)).abs() * (1 + 3 * target)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=1.0)


class ImageStage:
    """Losses of a batch of twins, and what trains on them.

    Args:
        backbone: view of the model; its image tower is thawed here, positions and text tower stay frozen.
        bank: [nouns + 1, states, each, C] caption features. directions: of the text stage.
    """

    def __init__(self, backbone: ClipBackbone, bank: Tensor, directions: Directions) -> None:
        self.backbone, self.bank, self.directions = backbone, bank, directions
        visual = backbone.visual.requires_grad_(True)
        visual.positional_embedding.requires_grad_(False)
        self.parameters = [p for p in visual.parameters() if p.requires_grad]
        self.average = copy.deepcopy(visual).requires_grad_(False)

    def follow(self, decay: float) -> None:
        """Moves the running average of the image tower's weights."""
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.backbone.visual.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)

    def normalise(self, image: Tensor) -> Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.backbone.mean, self.backbone.std))
        return (image - mean) / std

    def losses(self, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted terms of a batch."""
        backbone, count = self.backbone, len(views.image)
        dual = None
        draw = torch.rand(1, generator=generator).item()
        if draw < VV_SHARE:
            dual = int(torch.randint(0, backbone.num_layers // 2 + 1, (1,), generator=generator))
        elif draw < VV_SHARE + WINDOW_SHARE:
            return {"windows": self.window_loss(views, generator)}
        last = backbone.num_layers
        tokens = backbone.encode_image(self.normalise(views.image), layers=[last], vv_from=dual)
        cls = F.normalize(tokens.cls, dim=-1)
        patches = F.normalize(backbone.project(tokens.patches[0]), dim=-1)

        axis = self.asked(views, generator)
        margin = (cls * axis).sum(1)
        local = torch.einsum("bnc,bc->bn", patches, axis)
        target = (views.cover / FULL).clamp(max=1)
        logits, p = local / TEMPERATURE, torch.sigmoid(local / TEMPERATURE)
        values = {"patches": focal_bce(logits, target)}
        hurt = views.label > 0
        overlap = 2 * (p * target).sum(1) + 1
        values["dice"] = (1 - overlap / (p.sum(1) + target.sum(1) + 1))[hurt].mean() if hurt.any() else logits.sum() * 0

        if dual is not None:  # the V-V path has no class token of its own
            return values
        state = F.binary_cross_entropy_with_logits(margin / TEMPERATURE, views.label, reduction="none")
        values["state"] = (state * views.sure).sum() / views.sure.sum()
        top = local.topk(max(1, round(0.02 * local.shape[1])), dim=1).values.mean(1)
        whole, broken = (margin + top).chunk(2)
        seen = views.label[count // 2 :]
        values["rank"] = (F.softplus((whole - broken) * 5) * seen).sum() / seen.sum().clamp(min=1)

        pick = torch.randint(self.bank.shape[2], (count,), generator=generator)
        caption = self.bank[views.noun, views.state, pick]
        similar = cls @ caption.T * SCALE
        same = (views.noun[:, None] == views.noun) & (views.state[:, None] == views.state)
        similar = similar.masked_fill(same & ~torch.eye(count, dtype=torch.bool), -torch.inf)
        each = torch.arange(count)
        values["caption"] = (F.cross_entropy(similar, each) + F.cross_entropy(similar.T, each)) / 2
        named = views.pure.repeat(2)
        if named.any():
            kinds = SCALE * patches[named] @ self.directions.nouns.T
            aim = views.noun[named][:, None].expand(-1, kinds.shape[1]).flatten()
            values["material"] = F.cross_entropy(kinds.flatten(0, 1), aim)
        return values

    def asked(self, views: Views, generator: torch.Generator) -> Tensor:
        """A damaged text minus a flawless one for each view [B, C]: of its noun, or of some other thing."""
        count = len(views.noun)
        noun = torch.where(torch.rand(count, generator=generator) < 0.65, views.noun, GENERIC_NOUN)
        pick = torch.randint(self.bank.shape[2], (2, count), generator=generator)
        return self.bank[noun, 1, pick[0]] - self.bank[noun, 0, pick[1]]

    def window_loss(self, views: Views, generator: torch.Generator) -> Tensor:
        """The class token of windows of patches, which sees nothing else: damaged as its most damaged patch is."""
        backbone = self.backbone
        side = views.image.shape[-1] // backbone.patch_size
        size = int(torch.randint(2, 5, (1,), generator=generator))
        windows = windows_of(size, (side, side))
        rows = torch.randperm(len(windows.tokens), generator=generator)[:WINDOWS]
        tokens = backbone.encode_image(self.normalise(views.image), keep=windows.tokens[rows])
        cls = F.normalize(tokens.cls, dim=-1).unflatten(0, (len(views.image), -1))  # [B, W, C]
        logits = torch.einsum("bwc,bc->bw", cls, self.asked(views, generator)) / TEMPERATURE
        worst = (views.cover[:, None] * windows.cover.T[rows]).amax(dim=2)  # [B, W]
        return focal_bce(logits, (worst / FULL).clamp(max=1))

    def total(self, values: dict[str, Tensor]) -> Tensor:
        return torch.stack([WEIGHTS[name] * value for name, value in values.items()]).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"visual": self.backbone.visual.state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.backbone.visual.load_state_dict(state["visual"])
        self.average.load_state_dict(state["average"])
