"""The one loop over a tower's transformer blocks.

Blocks are open_clip's own `ResidualAttentionBlock`s. What the methods add to a frozen tower is an argument of `run_blocks`:
prompt tokens that enter at some blocks, the V-V attention path, adapters behind blocks, and the layers whose output is
wanted. Attention goes through `torch.nn.functional.scaled_dot_product_attention`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompts:
    """Tokens that enter a tower at the inputs of consecutive blocks.

    Args:
        tokens: One tensor a block, [n, D] (the same for every sequence) or [B, n, D].
        first_block: 0-based block at whose input `tokens[0]` enters; `tokens[j]` enters at block `first_block + j`.
        place: `end` of the sequence, or `start`, directly behind the first token (CLS or SOS).
        insert: True: the first tokens lengthen the sequence and the later ones replace them. False: all of them
            overwrite the tokens that stand there (cut where the sequence is shorter).
    """

    tokens: Sequence[Tensor]
    first_block: int = 0
    place: Literal["end", "start"] = "end"
    insert: bool = True

    @property
    def inserted(self) -> int:
        """By how many tokens the sequence has grown once the prompts are in."""
        return self.tokens[0].shape[-2] if self.insert and len(self.tokens) else 0

    def enter(self, block: int, x: Tensor) -> Tensor:
        """Puts this block's prompts, if it has any, into its input `x` [B, T, D]."""
        step = block - self.first_block
        if not 0 <= step < len(self.tokens):
            return x
        prompt = self.tokens[step].to(x.dtype)
        prompt = prompt.expand(x.shape[0], -1, -1)
        count = 0 if self.insert and step == 0 else prompt.shape[1]  # tokens that give way
        if self.place == "end":
            return torch.cat([x[:, : x.shape[1] - count], prompt], dim=1)
        if count:
            prompt = prompt[:, : x.shape[1] - 1]
        return torch.cat([x[:, :1], prompt, x[:, 1 + count :]], dim=1)

    def strip(self, x: Tensor) -> Tensor:
        """`x` [B, T, D] without the inserted tokens."""
        n = self.inserted
        if n == 0:
            return x
        return x[:, :-n] if self.place == "end" else torch.cat([x[:, :1], x[:, 1 + n :]], dim=1)


@dataclass(frozen=True)
class ValueAttention:
    """V-V attention in place of the ordinary one, in the one path, with the MLP behind it (AA-CLIP, stage 1).

    Args:
        first_block: 0-based block from which on attention is replaced.
        over: What a token sees: the `tokens` of its own sequence, or in the `batch` the tokens at its own position, so that
            what comes out depends on the other sequences.
    """

    first_block: int
    over: Literal["tokens", "batch"] = "tokens"

    def __call__(self, attn: nn.MultiheadAttention, normed: Tensor) -> Tensor:
        """The attention of a block's normalised input `[B, T, D]`."""
        x = normed.transpose(0, 1) if self.over == "batch" else normed
        value = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)[2]
        v = _heads(value, attn.num_heads)
        seen = _attention(attn, v, v, v, causal=False)
        return seen.transpose(0, 1) if self.over == "batch" else seen


@dataclass
class BlockOutputs:
    """What `run_blocks` returns.

    Attributes:
        last: [B, T, D] output of the last block (the ordinary path), inserted prompts still in it; [B, R, D] where R
            tokens of each sequence are read.
        taps: 1-based layer -> [B, T, D]; on the V-V path from its first block on, else the ordinary path.
        ordinary: The same layers, always the ordinary path.
    """

    last: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)
    ordinary: dict[int, Tensor] = field(default_factory=dict)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    heads: Tensor = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, T, D] -> [B, heads, T, D / heads]
    return heads


def _attention(
    attn: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None
) -> Tensor:
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    projected: Tensor = attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def _queries_keys_values(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[B, heads, T, D / heads]` of a block's input `x` [B, T, D]."""
    qkv = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = (_heads(part, block.attn.num_heads) for part in qkv.chunk(3, dim=-1))
    return q, k, v


def plain_block(block: Any, x: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """The output `[B, T, D]` of an open_clip block with its ordinary attention; arguments as those of `run_blocks`."""
    q, k, v = _queries_keys_values(block, x)
    x = x + block.ls_1(_attention(block.attn, q, k, v, causal, mask))
    out: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return out


def tokens_at(x: Tensor, positions: Tensor) -> Tensor:
    """The tokens [B, R, D] of each sequence of `x` [B, T, D] at its positions [B, R]."""
    return x[torch.arange(len(x), device=x.device)[:, None], positions]


def block_at(block: Any, x: Tensor, read: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """As `plain_block`, for some tokens of each sequence: [B, R, D] at the positions `read` [B, R].

    All tokens are seen, but only those that are read are attended from and go through the MLP.
    """
    own = tokens_at(x, read)
    width, weight, bias = x.shape[-1], block.attn.in_proj_weight, block.attn.in_proj_bias
    query = F.linear(block.ln_1(own), weight[:width], bias[:width])
    key, value = F.linear(block.ln_1(x), weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (_heads(part, block.attn.num_heads) for part in (query, key, value))
    seen = None  # [B, 1, R, T]
    if mask is not None:
        seen = tokens_at(mask[:, 0], read)[:, None]
    elif causal:
        seen = (torch.arange(x.shape[1], device=x.device) <= read[..., None])[:, None]
    own = own + block.ls_1(_attention(block.attn, q, k, v, causal=False, mask=seen))
    out: Tensor = own + block.ls_2(block.mlp(block.ln_2(own)))
    return out


def run_blocks(
    blocks: Sequence[nn.Module],
    x: Tensor,
    *,
    prompts: Prompts | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    taps: Collection[int] = (),
    vv_from: int | None = None,
    value_attention: ValueAttention | None = None,
    adapters: Sequence[nn.Module] = (),
    first_block: int = 0,
    until: int | None = None,
    read: Tensor | None = None,
) -> BlockOutputs:
    """Runs blocks `first_block .. until - 1` on `x`.

    Args:
        blocks: All of the tower's residual blocks.
        x: [B, T, D] input of block `first_block`.
        prompts: Tokens that enter on the way.
        causal: Each token sees itself and those before it (text towers).
        mask: [B, 1, T, T] bool in place of `causal`: row i sees the tokens that are True (see `SentenceTree`).
        taps: 1-based layers whose output is returned.
        vv_from: 0-based block from which a second path `v` runs beside the ordinary one: at each block the V-V
            attention `softmax(v v^T / sqrt(d)) v` of the *ordinary* path's input, through the block's own output
            projection, is added to `v`; no MLP, nothing flows back (AnomalyCLIP, section 3.3 "DPAM").
        value_attention: What takes the place of the ordinary attention from a block on.
        adapters: Modules `[B, T, D] -> [B, T, D]` behind the tower's first blocks; what they return enters the next block
            and is what a tap sees.
        first_block: 0-based number of the first block that runs.
        until: 0-based number of the block before which to stop. None runs to the end.
        read: [B, R] positions of the tokens of each sequence that the caller reads of `last`; the last block then computes
            no others. Of the ordinary path.

    Raises:
        ValueError: Prompts together with a V-V path (no method defines it), or tokens read of what is not the ordinary path.
    """
    if prompts is not None and vv_from is not None:
        raise ValueError("prompt tokens and a V-V path together are not defined: give one of them")
    if read is not None and not (vv_from is None and value_attention is None):
        raise ValueError("single tokens can be read of the ordinary path only")
    out = BlockOutputs(x)
    dual: Tensor | None = None
    end = len(blocks) if until is None else until
    for i in range(first_block, end):
        block: Any = blocks[i]  # open_clip's ResidualAttentionBlock
        if prompts is not None:
            x = prompts.enter(i, x)
        attn = block.attn
        if value_attention is not None and i >= value_attention.first_block:
            x = x + block.ls_1(value_attention(attn, block.ln_1(x)))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        elif vv_from is not None and i >= vv_from:
            q, k, v = _queries_keys_values(block, x)
            dual = (x if dual is None else dual) + block.ls_1(_attention(attn, v, v, v, causal))
            x = x + block.ls_1(_attention(attn, q, k, v, causal, mask))
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        elif read is not None and i == end - 1:
            x = block_at(block, x, read, causal, mask)
        else:
            x = getattr(block, "compiled", plain_block)(block, x, causal, mask)  # see `compiled.compile_blocks`
        if i < len(adapters):
            x = adapters[i](x)
        if i + 1 in taps:
            out.taps[i + 1] = x if dual is None else dual
            out.ordinary[i + 1] = x
    out.last = (
        tokens_at(x, read) if read is not None and first_block >= end else x
    )  # no block ran: all tokens are there
    return out


def plus_next_attention(blocks: Sequence[nn.Module], x: Tensor, layer: int) -> Tensor:
    """`x + attn(ln_1 x)` of the block behind 1-based `layer`, whose output `x` [B, T, D] is; `x` where none is behind it.

    What published codes hold under the name of layer `layer` where they keep a block's output and the next block adds its
    attention to the same memory before its MLP makes a new tensor (FiLo, PromptAD).
    """
    if layer == len(blocks):
        return x
    block: Any = blocks[layer]
    q, k, v = _queries_keys_values(block, x)
    after: Tensor = x + block.ls_1(_attention(block.attn, q, k, v, causal=False))
    return after
