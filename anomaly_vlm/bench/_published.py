"""AnomalyCLIP's and FAPrompt's training loss as their published programs compute it, written anew from their description.

Every image passes the dual-path tower in every step, every sentence has 77 tokens, the text tower's weights collect
gradients that nobody uses, and FAPrompt encodes the sentences of the second stage image by image, the normal one each time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.anomalyclip import AnomalyCLIP
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from anomaly_vlm.methods.faprompt import FAPrompt


class PublishedWay:
    """The loss of `method`'s parameters in the published way.

    It takes the method's backbone over, whose text weights collect gradients from now on.
    """

    def __init__(self, method: DualPathMethod) -> None:
        self.method: Any = method
        self.learned = list(method.learnable().values())
        self.clip = method.backbone
        self.clip.text.requires_grad_(True)

    # ---- towers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def image_tower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit global feature [B, C] of the ordinary path, unit patches [B, N, C] of the V-V path after the last block."""
        visual = self.clip.visual
        x, _ = self.clip.embed_image(images)
        x = visual.ln_pre(x)
        dual = x
        for i, block in enumerate(visual.transformer.resblocks):
            if i < self.method.vv_from:
                dual = x = block(x)
                continue
            attn = block.attn
            q, k, v = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
            dual = dual + attn.out_proj(attention(v, v, v, attn.num_heads))
            x = x + attn.out_proj(attention(q, k, v, attn.num_heads))
            x = x + block.mlp(block.ln_2(x))
        patches = visual.ln_post(dual) @ visual.proj
        return F.normalize(x[:, 0] @ visual.proj, dim=-1), F.normalize(patches, dim=-1)[:, 1:]

    def text_tower(self, ids: Tensor, learned: Tensor) -> Tensor:
        """Raw features [K, C] of the sentence `ids` [77] with learned tokens [K, n, Dt] behind its start."""
        text = self.clip.text
        count, length = learned.shape[:2]
        words = text.token_embedding(ids).detach().expand(count, -1, -1)
        x = torch.cat([words[:, :1], learned, words[:, 1 + length :]], dim=1) + text.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device).triu_(1)
        for i, block in enumerate(text.transformer.resblocks):
            if 0 < i <= len(self.method.deep):
                deep = self.method.deep[i - 1].expand(count, -1, -1)
                x = torch.cat([x[:, :1], deep, x[:, 1 + deep.shape[1] :]], dim=1)
            x = block(x, attn_mask=mask)
        features: Tensor = text.ln_final(x)[:, int(ids.argmax())] @ text.text_projection
        return features

    def ids(self, tokens: int, words: str) -> Tensor:
        """All 77 ids of a sentence whose first `tokens` words are placeholders."""
        return self.clip.tokenize([" ".join(["X"] * tokens + [f"{words}."])], trim=False)[0]

    # ---- losses ------------------------------------------------------------------------------------------------------

    def probabilities(self, features: Tensor, pair: Tensor) -> Tensor:
        """Similarities of [..., C] with (normal, abnormal) [2, C], after the softmax: [..., 2]."""
        probabilities: Tensor = (features @ pair.T / self.method.temperature).softmax(dim=-1)
        return probabilities

    def maps(self, prob: Tensor, size: tuple[int, int]) -> Tensor:
        """Both channels upsampled: [B, N, 2] -> [B, 2, H, W]."""
        rows, columns = (side // self.clip.patch_size for side in size)
        grid = prob.transpose(1, 2).unflatten(-1, (rows, columns))
        return F.interpolate(grid, size=size, mode="bilinear", align_corners=False)

    def weight(self, term: str) -> float:
        weight: float = self.method.terms[term].weight
        return weight

    def loss(self, batch: Batch) -> Tensor:
        assert batch.mask is not None
        with torch.no_grad():
            mask = (batch.mask == 1).float()
        cls, patches = self.image_tower(batch.image)
        compute = self._faprompt if isinstance(self.method, FAPrompt) else self._anomalyclip
        return compute(cls, patches, mask, batch.label)

    def _anomalyclip(self, cls: Tensor, patches: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        method: AnomalyCLIP = self.method
        sides = zip(method.words, (method.normal, method.abnormal), strict=True)
        encoded = [self.text_tower(self.ids(method.context_length, words), learned) for words, learned in sides]
        pair = F.normalize(torch.cat(encoded), dim=-1)
        maps = self.maps(self.probabilities(patches, pair), (mask.shape[-2], mask.shape[-1]))
        total = self.weight("image") * F.cross_entropy(cls @ pair.T / method.temperature, label)
        return total + self.weight("focal") * focal(maps, mask) + self.weight("dice") * dice_of_both(maps, mask)

    def _faprompt(self, cls: Tensor, patches: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        method: FAPrompt = self.method
        size = (mask.shape[-2], mask.shape[-1])
        normal_ids = self.ids(method.normal.shape[1], method.words[0])
        abnormal_ids = self.ids(method.normal.shape[1] + method.abnormal.shape[1], method.words[1])

        def encode(offset: Tensor | float) -> tuple[Tensor, Tensor]:
            """The pair [2, C], and the raw abnormal features [K, C]."""
            context = method.normal.expand(len(method.abnormal), -1, -1)
            normal = self.text_tower(normal_ids, method.normal)[0]
            abnormal = self.text_tower(abnormal_ids, torch.cat([context, method.abnormal + offset], dim=1))
            return F.normalize(torch.stack([normal, abnormal.mean(dim=0)]), dim=-1), abnormal

        plain, raw = encode(0.0)
        first = self.probabilities(patches, plain)
        offset = method.prior(method.selected(patches, first[..., 1].detach()))
        second, logits = [], []
        for i in range(len(cls)):
            pair, _ = encode(offset[i])
            second.append(self.probabilities(patches[i], pair))
            logits.append(cls[i] @ pair.T / method.temperature)
        adapted, image = torch.stack(second), torch.stack(logits)
        peaks = [prob[..., 1].amax(dim=1) for prob in (first, adapted)]
        score = 0.5 * (image.softmax(dim=-1)[:, 1] + (2 * peaks[0] + peaks[1]) / 3)
        entropy = F.binary_cross_entropy_with_logits(score, label.float(), reduction="none")
        total: Tensor = self.weight("image") * F.cross_entropy(image, label)
        total = total + self.weight("image_focal") * ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
        cosines = F.cosine_similarity(raw[:, None], raw[None], dim=-1).abs()
        total = total + self.weight("orthogonality") * cosines.triu(diagonal=1).sum()
        total = total + self.weight("prior") * offset[label == 0].pow(2).mean(dim=-1).sum()
        for stage, prob in enumerate((first, adapted), start=1):
            maps = self.maps(prob, size)
            total = total + self.weight(f"focal_map{stage}") * focal(maps, mask)
            total = total + self.weight(f"dice_map{stage}") * dice_of_both(maps, mask)
        return total


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Written out, as published: [B, T, D] -> [B, T, D]."""
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    mixed: Tensor = (weights @ v).transpose(1, 2).flatten(2)
    return mixed


def focal(maps: Tensor, mask: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """Focal loss of two channels [B, 2, H, W] against [B, H, W], over a one-hot target as published."""
    hot = torch.stack([1 - mask, mask], dim=1)
    q = (((1 - smooth) * hot + smooth * (1 - hot)) * maps).sum(dim=1) + smooth
    return (-((1 - q) ** 2) * q.log()).mean()


def dice_of_both(maps: Tensor, mask: Tensor) -> Tensor:
    """Dice of the abnormal channel with the mask plus that of the normal one with its complement."""
    total = maps.new_zeros(())
    for prob, target in ((maps[:, 1].flatten(1), mask.flatten(1)), (maps[:, 0].flatten(1), 1 - mask.flatten(1))):
        overlap = (prob * target).sum(dim=1)
        total = total + (1 - (2 * overlap + 1) / (prob.sum(dim=1) + target.sum(dim=1) + 1)).mean()
    return total
