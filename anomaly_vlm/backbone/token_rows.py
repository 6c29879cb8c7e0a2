"""Token tables of which a file stores the rows in use: small files for small models.

`token_embedding.ids` [n] and `token_embedding.rows` [n, D] stand for `token_embedding.weight`. Where an id stands under
`token_embedding.fallback`, every other token reads as that one; without it, other rows are zero.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

IDS, ROWS, FALLBACK = (f"token_embedding.{name}" for name in ("ids", "rows", "fallback"))
log = logging.getLogger("anomaly_vlm")


def whole_table(state: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """`state` with the whole table `token_embedding.weight`, shaped as `like` [V, D]; unchanged where it has one."""
    if IDS not in state:
        return dict(state)
    ids, rows = state[IDS].long(), state[ROWS].to(like.dtype)
    table = torch.zeros_like(like)
    if FALLBACK in state:
        table[:] = rows[ids == state[FALLBACK].long()]
    table[ids] = rows
    rest = {key: value for key, value in state.items() if key not in (IDS, ROWS, FALLBACK)}
    return {**rest, "token_embedding.weight": table}


class FewTokens:
    """A tokenizer that says once which words the weights have no rows for.

    Args:
        tokenizer: Texts -> ids [N, T].
        ids: Tokens with a row of their own.
        fallback: The token that all others read as.
        decode: Ids -> text.
    """

    def __init__(
        self, tokenizer: Callable[[list[str]], Tensor], ids: Tensor, fallback: int, decode: Callable[[list[int]], str]
    ) -> None:
        self.tokenizer, self.decode = tokenizer, decode
        self.known = torch.zeros(int(ids.max()) + 1, dtype=torch.bool)
        self.known[ids.long()] = True
        self.fallback, self.told = decode([fallback]).strip(), False

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids [N, T]; the first words without a row of their own are logged once."""
        ids = self.tokenizer(texts)
        if not self.told:
            used = ids.unique()
            inside = used < len(self.known)
            foreign = torch.cat([used[~inside], used[inside][~self.known[used[inside]]]])
            foreign = foreign[foreign != 0]  # padding
            if len(foreign):
                words = ", ".join(f"'{self.decode([token]).strip()}'" for token in foreign[:5].tolist())
                more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
                log.warning("these weights do not know %s%s: read as '%s'", words, more, self.fallback)
                self.told = True
        return ids
