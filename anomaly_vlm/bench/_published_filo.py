"""FiLo's stage-1 loss as its published program computes it, written anew from its description.

The image passes the dual-path tower in every step, all sentences have 77 tokens and are encoded whole, each MMCI head runs
its six convolutions one by one, both channels of each map are upsampled, and the text tower's weights collect gradients that
nobody uses. The image tower is counted without gradients, in the published program's favour.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.bench._published import focal
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.filo import FiLo
from anomaly_vlm.methods.filo.mmci import MMCI


class PublishedFiLo:
    """The loss of `method`'s parameters in the published way.

    It takes the method's backbone over, whose text weights collect gradients from now on.
    """

    def __init__(self, method: FiLo) -> None:
        self.method = method
        self.learned = list(method.learnable().values())
        self.clip = method.backbone
        self.clip.text.requires_grad_(True)

    def loss(self, batch: Batch) -> Tensor:
        """Focal and row-wise dice of all heads' maps, one image at a time."""
        method = self.method
        assert batch.mask is not None
        total = batch.image.new_zeros(())
        for i, category in enumerate(batch.category):
            with torch.no_grad():
                tokens = method.encode_frozen(batch.image[i : i + 1])
            mask = (batch.mask[i : i + 1] == 1).float()
            feature = F.normalize(tokens["cls"].float(), dim=-1)
            pair = self.pair(category, feature)
            for z in self.heads(tokens):
                logits = method.map_options.logit_scale * (F.normalize(z, dim=-1) @ pair.T)  # [1, N, 2]
                rows, columns = (side // self.clip.patch_size for side in batch.size)
                grid = logits.transpose(1, 2).unflatten(-1, (rows, columns))
                maps = F.interpolate(grid, size=batch.size, mode="bilinear", align_corners=True).softmax(dim=1)
                total = total + focal(maps, mask) + dice_rows(maps[0, 1], mask[0]) + dice_rows(maps[0, 0], 1 - mask[0])
        return total / len(batch.category)

    def heads(self, tokens: dict[str, Tensor]) -> list[Tensor]:
        heads = self.method.heads
        outputs = [head(tokens[name]) for head, name in zip(heads.linear, heads.linear_names, strict=True)]
        side = int(tokens["v"].shape[1] ** 0.5)
        for head, name in zip(heads.mmci, heads.mmci_names, strict=True):
            assert isinstance(head, MMCI)
            image = tokens[name].transpose(1, 2).unflatten(2, (side, side))
            out = torch.stack([conv(image) for conv in head.convs.values()]).sum(dim=0)
            outputs.append(out.flatten(2).transpose(1, 2))
        return outputs

    def pair(self, category: str, feature: Tensor) -> Tensor:
        method, means = self.method, []
        lines = method.sentences.lines(category)
        for learner, sentences in zip((method.normal, method.abnormal), lines, strict=True):
            context = learner(feature)[0]
            front = " ".join(["X"] * len(context))
            ids = self.clip.tokenize([f"{front} {line}" for line in sentences], trim=False)
            means.append(F.normalize(self.text_tower(ids, context), dim=-1).mean(dim=0))
        pair = F.normalize(torch.stack(means), dim=-1)
        normalised: Tensor = pair / pair.norm()
        return normalised

    def text_tower(self, ids: Tensor, context: Tensor) -> Tensor:
        text = self.clip.text
        words = text.token_embedding(ids).detach()
        filled = context.expand(len(ids), -1, -1)
        x = torch.cat([words[:, :1], filled, words[:, 1 + len(context) :]], dim=1) + text.positional_embedding
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device).triu_(1)
        for block in text.transformer.resblocks:
            x = block(x, attn_mask=mask)
        features: Tensor = text.ln_final(x)[torch.arange(len(ids)), ids.argmax(dim=-1)] @ text.text_projection
        return features


def dice_rows(prob: Tensor, target: Tensor) -> Tensor:
    """Dice of a map [H, W], each row of pixels for itself."""
    overlap = (prob * target).sum(dim=-1)
    return (1 - (2 * overlap + 1) / (prob.sum(dim=-1) + target.sum(dim=-1) + 1)).mean()
