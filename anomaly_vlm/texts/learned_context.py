"""Sentences with learned context tokens in them: inserting the tokens, cutting and encoding the sentences.

A sentence is tokenised with placeholder words behind its start token, one for each learned token. The embeddings of the
placeholders are then replaced by the learned tokens, as CoOp does it (Zhou et al., IJCV 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.frozen import sentence_end


def insert_context(embedded: Tensor, context: Tensor) -> Tensor:
    """Replaces the placeholders behind the start token by learned tokens.

    Args:
        embedded: Token embeddings `[..., T, Dt]` of sentences with placeholders; one sentence `[T, Dt]` serves all contexts.
        context: Learned tokens `[..., n, Dt]`.

    Returns:
        Embeddings `[..., T, Dt]`.
    """
    embedded = embedded.expand(*context.shape[:-2], -1, -1)
    return torch.cat([embedded[..., :1, :], context, embedded[..., 1 + context.shape[-2] :, :]], dim=-2)


def encode_sentences(backbone: ClipBackbone, ids: Sequence[Tensor], embedded: Sequence[Tensor]) -> list[Tensor]:
    """Encodes several groups of sentences in one call.

    Args:
        backbone: Frozen towers.
        ids: Token ids `[R, T]` of each group, which say where a sentence ends.
        embedded: Token embeddings `[R, T, Dt]` of each group, without positions.

    Returns:
        Text features `[R, C]` of each group, not normalised.
    """
    all_ids = torch.cat(list(ids))
    length = sentence_end(all_ids)
    states = torch.cat([group[:, :length] for group in embedded]) + backbone.text.positional_embedding[:length]
    encoded = backbone.encode_text(all_ids[:, :length], states=states).float()
    return list(torch.split(encoded, [len(group) for group in ids]))


def pad_sentences(sentences: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Joins groups of sentences of different length into one batch, padded at the end.

    The padding changes nothing: under the causal mask no token reads what stands behind it.

    Args:
        sentences: Token ids `[k, T]` and embeddings `[k, T, Dt]` of each group.

    Returns:
        Token ids and embeddings of all sentences.
    """
    longest = max(ids.shape[1] for ids, _ in sentences)
    ids = torch.cat([F.pad(i, (0, longest - i.shape[1])) for i, _ in sentences])
    embedded = torch.cat([F.pad(e, (0, 0, 0, longest - e.shape[1])) for _, e in sentences])
    return ids, embedded
