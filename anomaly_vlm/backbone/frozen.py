"""`FrozenTower`: what tables and caches name of any frozen weights; `FrozenClip`: what every open_clip model adds to it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, cast

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from anomaly_vlm.backbone.blocks import Prompts, run_blocks
from anomaly_vlm.backbone.sentence_tree import SentenceTree
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.names import shown

log = logging.getLogger("anomaly_vlm")
Activation = Literal["gelu", "quick_gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def sentence_end(ids: Tensor) -> int:
    """Number of tokens up to the end token of the longest sentence; all tokens while a graph is exported.

    The end token has the largest id of a row. The features are read there, and what follows changes nothing.

    Args:
        ids: Token ids `[R, T]`.
    """
    return ids.shape[-1] if torch.compiler.is_exporting() else int(ids.argmax(dim=-1).max()) + 1


class FrozenTower(nn.Module):
    """Frozen weights with a name: what every backbone is, with or without a text half.

    Args:
        name: Name of the architecture, for tables and error messages.
        weights: Where the weights come from, in words.
        mean: Mean of the RGB channels (in [0, 1]) that the weights were trained with.
        std: Standard deviation of the RGB channels (in [0, 1]) that the weights were trained with.
        is_random: The weights were never trained.
    """

    def __init__(
        self, *, name: str, weights: str, mean: Sequence[float], std: Sequence[float], is_random: bool
    ) -> None:
        super().__init__()
        self.name, self.weights, self.is_random = name, weights, is_random
        self.mean, self.std = _rgb(mean), _rgb(std)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the towers are frozen."""
        return super().train(False)

    def fingerprint(self) -> str:
        """Short digest of the weights, to tell backbones apart in checkpoints and caches.

        Of every tensor: a sample, and the sum of all its bit patterns as integers, which any single change moves and which
        is the same in whatever order it is added up. Far quicker than a hash of all bytes.
        """
        digest = hashlib.blake2b(digest_size=8)
        for key, value in self.state_dict().items():
            flat = value.detach().float().flatten().cpu()
            bits = flat.view(torch.int32).sum(dtype=torch.int64).item()
            digest.update(f"{key}{tuple(value.shape)}{bits}".encode())
            digest.update(flat[:: max(1, flat.numel() // 256)].numpy().tobytes())
        return digest.hexdigest()

    def cache_key(self) -> dict[str, str]:
        """What the tokens of an image depend on besides weights, pixels and layers, for caches."""
        return {}

    def describe(self) -> str:
        """Name and origin of the weights, for the log and the head of every table."""
        return f"{self.name}, {self.weights}"


class FrozenClip(FrozenTower):
    """The text tower of an open_clip model. A subclass holds the image tower as `visual`.

    Args:
        model: An `open_clip.CLIP` (or a model with the same towers) with its weights loaded.
        name: See `ClipBackbone`.
        weights: See `ClipBackbone`.
        tokenizer: See `ClipBackbone`.
        activation: Activation of the text tower; see `ClipBackbone`.
        mean: See `ClipBackbone`.
        std: See `ClipBackbone`.
        is_random: See `ClipBackbone`.

    Raises:
        UserError: Unknown activation, or a text tower that cannot be driven block by block.
    """

    visual: Any  # open_clip's towers, whose parts are read by name
    text: Any
    embed_dim: int
    rewrite: Callable[[str], str] | None = None

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        weights: str,
        tokenizer: Callable[[list[str]], Tensor],
        activation: Activation,
        mean: Sequence[float],
        std: Sequence[float],
        is_random: bool,
    ) -> None:
        super().__init__(name=name, weights=weights, mean=mean, std=std, is_random=is_random)
        if activation not in ACTIVATIONS:
            raise unknown_choice("backbone.activation", str(activation), ["auto", *ACTIVATIONS])
        self.register_module("visual", None)  # first in the state, whatever a subclass puts here
        self.text = _text_tower(model, name)
        self.activation = activation
        self._tokenizer = tokenizer
        self._cut_texts: set[str] = set()  # that were named
        set_activation(self.text.transformer.resblocks, activation)
        self.text_width: int = self.text.token_embedding.weight.shape[1]
        self.num_text_layers = len(self.text.transformer.resblocks)
        self.context_length: int = self.text.positional_embedding.shape[0]
        self.logit_scale = float(cast(Tensor, model.logit_scale).detach())  # as stored: the logarithm of CLIP's scale

    # ---- text tower --------------------------------------------------------------------------------------------------

    def rewritten(self, texts: Sequence[str]) -> list[str]:
        """The texts as they are read: `rewrite` changes them on purpose, see `texts.rewrite`."""
        return list(texts) if self.rewrite is None else [self.rewrite(text) for text in texts]

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Tensor:
        """Token ids [N, T] on the backbone's device.

        With `trim` they are cut behind the longest text's end token, which is exact under the causal mask. A text of more
        tokens than the tower has positions is cut by the tokenizer, and named. `rewrite` changes all of them first.
        """
        texts = self.rewritten(texts)
        ids = self._tokenizer(list(texts))
        if not torch.compiler.is_exporting() and len(ids):
            self._name_cut_texts(texts, ids)
        if trim:
            ids = ids[:, : sentence_end(ids)]
        return ids.to(self.text.token_embedding.weight.device)

    def _name_cut_texts(self, texts: Sequence[str], ids: Tensor) -> None:
        """Says once of each text that it loses its end, in one line: two that differ there alone become one."""
        encode: Callable[[str], list[int]] | None = getattr(self._tokenizer, "encode", None)
        if encode is None:
            return
        # texts whose end token is in the last place
        full = (ids.argmax(dim=-1) == ids.shape[-1] - 1).nonzero().flatten().tolist()
        counts = {texts[row]: len(encode(texts[row])) + 2 for row in full if texts[row] not in self._cut_texts}
        cut = [text for text, count in counts.items() if count > ids.shape[-1]]
        if cut:
            self._cut_texts.update(cut)
            more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
            log.warning(
                "a text of %d tokens is cut to %d: '%s ...'%s", counts[cut[0]], ids.shape[-1], shown(cut[0][:60]), more
            )

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Token plus position embeddings [N, T, Dt] of token ids [N, T]: the input of the text tower's block 0."""
        embedded: Tensor = self.text.token_embedding(tokens) + self.text.positional_embedding[: tokens.shape[-1]]
        return embedded

    def text_states(self, tokens: Tensor, *, until: int) -> Tensor:
        """Hidden states [N, T, Dt] at the input of text block `until` (0-based), without prompts. Frozen: no gradient."""
        with torch.no_grad():
            return run_blocks(self.text.transformer.resblocks, self.embed_text(tokens), causal=True, until=until).last

    def encode_text(
        self,
        tokens: Tensor,
        *,
        states: Tensor | None = None,
        first_block: int = 0,
        prompts: Prompts | None = None,
        adapters: Sequence[nn.Module] = (),
        projection: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Text features [N, C], not normalised: `ln_final`, the end token's position, `text_projection`.

        Args:
            tokens: [N, T] ids; they give the end token's position (the largest id), also where prompts overwrite it.
            states: [N, T, Dt] input of block `first_block` in place of the tokens' own embeddings (learned contexts, or
                a cached `text_states`).
            first_block: 0-based block to start at.
            prompts: Tokens that enter on the way.
            adapters: See `run_blocks`.
            projection: [N, Dt] -> [N, C] in place of the tower's own `text_projection`.
        """
        x = self.embed_text(tokens) if states is None else states
        blocks = self.text.transformer.resblocks
        end = tokens.argmax(dim=-1)
        if prompts is not None and prompts.place == "start":
            end = end + prompts.inserted
        options: dict[str, Any] = {"prompts": prompts, "adapters": adapters, "first_block": first_block}
        run = run_blocks(blocks, x, causal=True, read=end[:, None], **options)
        ends = run.last[:, 0]
        return self._project_text(ends) if projection is None else projection(self.text.ln_final(ends))

    @torch.no_grad()
    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Text features [n, C] of sentences, float32, not normalised: those of one length together, none twice."""
        different = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
        ids = self.tokenize(list(different))
        ends = ids.argmax(dim=-1)
        features = ids.new_empty(len(ids), self.embed_dim, dtype=torch.float32)
        for end in ends.unique().tolist():
            rows = ends == end
            features[rows] = self.encode_text(ids[rows, : end + 1]).float()
        return features[[different[sentence] for sentence in sentences]]

    def encode_tree(
        self, tree: SentenceTree, states: Tensor, *, first_block: int = 0, prompts: Sequence[Tensor] = ()
    ) -> Tensor:
        """Text features [B, R, C], not normalised, of the tree's R sentences.

        Args:
            tree: Tree of the sentences' token ids.
            states: [B, S, N, Dt] input of block `first_block` at its nodes (at block 0: embeddings and positions).
            first_block: 0-based block to start at.
            prompts: What stands in the tree's places for prompts at `first_block` and the blocks behind it: for each block
                [n, Dt], or [B, n, Dt].
        """
        batch, groups = states.shape[:2]
        each = [p if p.ndim == 2 else p.repeat_interleave(groups, dim=0) for p in prompts]
        run = run_blocks(
            self.text.transformer.resblocks,
            states.flatten(0, 1),
            prompts=Prompts(each, first_block, place="start", insert=False) if each else None,
            mask=tree.sees.repeat(batch, 1, 1, 1),
            first_block=first_block,
            read=tree.ends.repeat(batch, 1),
        )
        ends = run.last.unflatten(0, (batch, groups)).flatten(1, 2)[:, : len(tree.paths)]
        return self._project_text(ends)

    def _project_text(self, x: Tensor) -> Tensor:
        x = self.text.ln_final(x)
        projection = self.text.text_projection
        features: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return features


def set_activation(blocks: Any, activation: Activation) -> None:
    """The activation of every block's MLP."""
    for block in blocks:
        block.mlp.gelu = ACTIVATIONS[activation]()


def drivable(blocks: Any) -> bool:
    """Whether all blocks are open_clip's plain residual attention blocks, which `run_blocks` knows."""
    return bool(blocks) and all(type(block) is ResidualAttentionBlock for block in blocks)


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _text_tower(model: Any, name: str) -> nn.Module:
    text = model.text if hasattr(model, "text") else _TextTower(model)
    blocks = getattr(getattr(text, "transformer", None), "resblocks", [])
    if not drivable(list(blocks)) or getattr(text, "pool_type", "") != "argmax":
        raise UserError(
            f"backbone '{name}': its text tower is not CLIP's (plain residual attention blocks, end-token pooling)"
        )
    return text


class _TextTower(nn.Module):
    """The text half of an `open_clip.CLIP`, whose parts lie flat in the model, under one name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.transformer, self.token_embedding, self.ln_final = model.transformer, model.token_embedding, model.ln_final
        self.positional_embedding, self.text_projection = model.positional_embedding, model.text_projection
        self.pool_type: str = model.text_pool_type
