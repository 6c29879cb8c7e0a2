"""The image tower of `nano_convnext` learns what is where, against frozen texts.

Dense: at every stride each cell is compared with all class texts; strides 4, 8 and 16 through a linear map that is thrown
away, stride 32 through the tower's own head. Pooled: the last stage, averaged over the cells of a class, against one of the
class's sentences; that is what FC-CLIP's second classifier asks. Captions: a view against a sentence about something in it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ConvNextBackbone
from anomaly_vlm.backbone.convnext import STRIDES
from anomaly_vlm.nano.model import TEMPERATURE
from anomaly_vlm.nano.road_text import CLASSES, ELSEWHERE
from anomaly_vlm.nano.road_views import VALIDATION, RoadViews, draw_scene

WEIGHTS = {"dense_4": 1.0, "dense_8": 1.0, "dense_16": 1.0, "dense_32": 1.0, "pooled": 0.5, "caption": 0.3}


class RoadStage:
    """Losses of a batch of views, and what trains on them.

    Args:
        backbone: view of the model; its image tower is thawed here.
        bank: [things + 1, each, C] unit features of sentences. texts: [things + 1, C] one text of each thing.
        seed: of the linear maps.
    """

    def __init__(self, backbone: ConvNextBackbone, bank: Tensor, texts: Tensor, *, seed: int = 0) -> None:
        self.backbone, self.bank, self.texts = backbone, bank, texts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tops = [nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, bank.shape[-1], 1)) for c in backbone.widths[:-1]]
        self.learned = nn.ModuleDict({"visual": backbone.visual.requires_grad_(True), "tops": nn.ModuleList(tops)})
        self.parameters = list(self.learned.parameters())
        self.average = copy.deepcopy(self.learned).requires_grad_(False)

    def follow(self, decay: float) -> None:
        """Moves the running average of the weights."""
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.learned.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels in [0, 1] as the tower takes them."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.backbone.mean, self.backbone.std))
        return (image - mean) / std

    def embed(self, image: Tensor, parts: Any) -> tuple[list[Tensor], Tensor]:
        """Unit features [B, C, h, w] at every stride of pictures in [0, 1], and the last stage as it is."""
        trunk, head = parts["visual"].trunk, parts["visual"].head
        maps = trunk.forward_intermediates(self.normalise(image), norm=False, intermediates_only=True)
        dense = [F.normalize(top(part), dim=1) for top, part in zip(parts["tops"], maps, strict=False)]
        last = maps[-1]
        cells = last.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
        own = F.normalize(head(trunk.head(cells)), dim=-1)
        own = own.view(len(last), *last.shape[-2:], -1).permute(0, 3, 1, 2)
        return [*dense, own], last

    def project(self, pooled: Tensor) -> Tensor:
        """Unit vectors [n, C] of pooled features [n, C_last]."""
        return F.normalize(self.backbone.project(pooled), dim=-1)

    def losses(self, views: RoadViews, generator: torch.Generator) -> dict[str, Tensor]:
        """Unweighted terms of a batch."""
        features, last = self.embed(views.image, self.learned)
        shares = class_shares(views.label)
        frequency = shares.mean(dim=(0, 2, 3))
        weight = (frequency + 1e-3).rsqrt()  # rare classes count more, as the root of how rare they are
        values = {}
        for stride, feature in zip(STRIDES, features, strict=True):
            aim = shares if stride == 4 else F.avg_pool2d(shares, stride // 4)
            said = torch.einsum("bchw,kc->bkhw", feature, self.texts) / TEMPERATURE
            each = -(aim * said.log_softmax(dim=1)).sum(1)
            rare = torch.einsum("bkhw,k->bhw", aim, weight)
            values[f"dense_{stride}"] = (each * rare).sum() / rare.sum()

        present, thing = (F.avg_pool2d(shares, 8).amax(dim=(2, 3)) > 0.25).nonzero(as_tuple=True)
        inside = F.avg_pool2d(shares, 8)[present, thing]  # [n, h, w]
        pooled = torch.einsum("nhw,nchw->nc", inside, last[present]) / inside.sum(dim=(1, 2))[:, None]
        pick = torch.randint(self.bank.shape[1], (self.bank.shape[0],), generator=generator)
        sentences = self.bank[torch.arange(len(self.bank)), pick]
        values["pooled"] = F.cross_entropy(self.project(pooled) @ sentences.T / TEMPERATURE, thing)

        whole = shares.mean(dim=(2, 3))
        said = torch.multinomial(whole.sqrt(), 1, generator=generator)[:, 0]
        caption = self.bank[said, torch.randint(self.bank.shape[1], (len(said),), generator=generator)]
        similar = self.project(last.mean(dim=(2, 3))) @ caption.T / TEMPERATURE
        true = whole[:, said] > 0  # [views, captions]: what is in view is no wrong caption
        similar = similar.masked_fill(true & ~torch.eye(len(said), dtype=torch.bool), -torch.inf)
        values["caption"] = F.cross_entropy(similar, torch.arange(len(said)))
        return values

    def total(self, values: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        return torch.stack([WEIGHTS[name] * value for name, value in values.items()]).sum()

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted run resumes from."""
        return {"learned": self.learned.state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.learned.load_state_dict(state["learned"])
        self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def validate(self, count: int, seed: int = 0) -> dict[str, float]:
        """The averaged weights on fresh scenes without unknown objects, in percent.

        `cells_S`: share of the cells at stride S whose nearest class text is the class that fills most of the cell.
        `segments`: share of the true segments whose pooled last stage is nearest to its class text, all 19 to choose from.
        """
        drawn = [draw_scene(VALIDATION + seed, number) for number in range(count)]
        hits: dict[str, list[Tensor]] = {}
        for start in range(0, count, 16):
            scenes, labels = zip(*drawn[start : start + 16], strict=True)
            image = torch.from_numpy(np.stack(scenes)).permute(0, 3, 1, 2).float() / 255
            shares = class_shares(torch.from_numpy(np.stack(labels)).long())
            features, last = self.embed(image, self.average)
            texts = self.texts[:CLASSES]
            for stride, feature in zip(STRIDES, features, strict=True):
                most = F.avg_pool2d(shares, stride // 4).argmax(1)
                found = torch.einsum("bchw,kc->bkhw", feature, texts).argmax(1)
                hits.setdefault(f"cells_{stride}", []).append((found == most).flatten())
            inside = F.avg_pool2d(shares, 8)
            present, thing = (inside.sum(dim=(2, 3)) > 0).nonzero(as_tuple=True)
            inside = inside[present, thing]
            pooled = torch.einsum("nhw,nchw->nc", inside, last[present]) / inside.sum(dim=(1, 2))[:, None]
            visual: Any = self.average["visual"]
            own = visual.head(visual.trunk.head(pooled[:, :, None, None]))
            hits.setdefault("segments", []).append((own @ texts.T).argmax(1) == thing)
        return {name: 100 * torch.cat(each).float().mean().item() for name, each in hits.items()}


def class_shares(label: Tensor) -> Tensor:
    """int64 [B, H, W] -> [B, things + 1, H / 4, W / 4]: the share of each thing in the cells of stride 4."""
    count, height, width = label.shape
    cells = label.view(count, height // 4, 4, width // 4, 4).transpose(2, 3).flatten(3)  # [B, h, w, 16]
    shares = torch.zeros(count, height // 4, width // 4, ELSEWHERE + 1)
    shares.scatter_add_(3, cells, torch.full(cells.shape, 1 / 16))
    return shares.permute(0, 3, 1, 2)
