"""Text features of Bayes-PFL's prompts under draws of their offsets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.texts.learned_context import insert_context


def pair_features(
    backbone: ClipBackbone, sentences: Sequence[str], prompts: Sequence[Tensor], offsets: Sequence[Tensor]
) -> Tensor:
    """Encodes the pairs of prompts of each image.

    Args:
        backbone: Frozen towers.
        sentences: B sentences, with a placeholder for each learned token in front of the class word.
        prompts: Context `[b, P, Dt]`, normal and abnormal states `[b, Q, Dt]`.
        offsets: Of the context tokens `[B, R, Dt]`, and of the tokens of both states `[R, Dt]` each.

    Returns:
        Unit features `[B, 2, R b, C]`, normal first; draws are the outer loop of the pairs.

    Raises:
        UserError: A sentence fills the context of the text tower.
    """
    ids = backbone.tokenize(sentences)  # [B, T]
    if ids.shape[1] >= backbone.context_length:  # the tokenizer cuts what does not fit
        longest = max(sentences, key=len).replace("X ", "")
        raise UserError(
            f"the class word '{longest}' and the learned tokens fill the {backbone.context_length} positions of the text"
            " tower: give it a shorter word in method.texts, or fewer learned tokens"
        )
    shared = prompts[0] + offsets[0][:, :, None, None]  # [B, R, b, P, Dt]
    sides = []
    for tokens, offset in zip(prompts[1:], offsets[1:], strict=True):
        states = (tokens + offset[:, None, None]).expand(len(sentences), -1, -1, -1, -1)  # [B, R, b, Q, Dt]
        sides.append(torch.cat([shared, states], dim=3))
    learned = torch.stack(sides, dim=1).flatten(2, 3)  # [B, 2, R b, P + Q, Dt]
    filled = insert_context(backbone.text.token_embedding(ids)[:, None, None], learned)
    filled = filled + backbone.text.positional_embedding[: ids.shape[1]]
    rows = ids[:, None, None].expand(*filled.shape[:3], -1).flatten(0, 2)
    features = backbone.encode_text(rows, states=filled.flatten(0, 2)).float()
    return torch.unflatten(F.normalize(features, dim=-1), 0, filled.shape[:3])
