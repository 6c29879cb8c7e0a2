"""`FrozenTokens`: methods whose image tower is frozen, so that its tokens are computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anomaly_vlm.caching.tokens import TokenCache
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.base.method import AnomalyMethod


class FrozenTokens(AnomalyMethod):
    """A method that reads tokens of a frozen image tower from a cache, which it fills.

    A subclass defines `cache_key` and `encode_frozen`, and reads `frozen_tokens`.

    Attributes:
        token_cache: Holds tokens and text features by name; None for no cache.
    """

    token_cache: TokenCache | None = None

    def cache_key(self) -> dict[str, Any] | None:
        """What the frozen tokens depend on besides weights and pixels, such as layers and attention path.

        Returns:
            Plain values by name; None where the tokens must not be cached.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no cache_key")

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Computes the frozen tokens of images `[M, 3, H, W]` by name, each with the batch axis first."""
        raise NotImplementedError(f"{type(self).__name__} defines no encode_frozen")

    def frozen_tokens(self, batch: Batch) -> dict[str, Tensor]:
        """The frozen tokens of a batch by name, `[B, ...]`; those that the cache lacks are computed and put there."""
        cached: list[dict[str, Tensor] | None] = [None] * len(batch) if batch.tokens is None else list(batch.tokens)
        missing = [i for i, entry in enumerate(cached) if entry is None]
        if missing:
            with torch.no_grad():
                fresh = self.encode_frozen(batch.unencoded)
            if len(missing) == len(cached) and self.token_cache is None:
                return fresh
            for row, i in enumerate(missing):
                cached[i] = entry = {name: value[row] for name, value in fresh.items()}
                if self.token_cache is not None:
                    self.token_cache.put(batch.key[i], entry)
        entries = [entry for entry in cached if entry is not None]
        return {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}

    def encode_ahead(self, batch: Batch) -> None:
        """Puts the frozen tokens into a batch in place of its images, before its turn and beside other batches.

        On the CPU alone, and not with a large tower: one batch fills the cores, and the first step would wait for several.
        """
        if batch.tokens is not None and None not in batch.tokens:
            return
        if self.device.type == "cpu" and not self.is_large and not self.is_transductive:
            tokens = self.frozen_tokens(batch)
            batch.tokens = [{name: value[i] for name, value in tokens.items()} for i in range(len(batch))]
            batch.unencoded = batch.unencoded.new_empty(0, *batch.unencoded.shape[1:])

    def cached_text_features(self, sentences: Sequence[Sequence[str]], encode: Callable[[], Tensor]) -> Tensor:
        """Text features of a frozen tower, read from the token cache or computed and put there.

        Args:
            sentences: All sentences, which name the entry in the cache.
            encode: Computes the features where the cache has none.
        """
        given = [sentence for side in sentences for sentence in side]
        sentences = [self.backbone.rewritten(side) for side in sentences]
        key = "text_features" + hashlib.blake2b(repr(sentences).encode(), digest_size=14).hexdigest()
        entry = None if self.token_cache is None else self.token_cache.get(key)
        if entry is None:
            entry = {"text": encode()}
            if self.token_cache is not None:
                self.token_cache.put(key, entry)
        else:
            # those that are encoded are looked at there; a token is a byte or more, so that shorter texts are whole
            most = self.backbone.context_length - 2
            if long := [text for text in given if len(text.encode("utf-8", "surrogatepass")) > most]:
                self.backbone.tokenize(long)  # says which ones are cut
        return entry["text"]
