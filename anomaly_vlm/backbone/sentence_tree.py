"""Sentences that share their beginnings, encoded as one sequence in which every shared beginning stands once.

Exact under the text tower's causal mask: what a token becomes depends on the tokens before it alone, so sentences with the
same beginning have the same states there. Nothing behind an end token is ever read, and is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SentenceTree:
    """The prefix tree of R sentences with N distinct beginnings.

    Args:
        ids: [R, T] token ids; the end token is the largest of a row.

    Attributes:
        ids: [N] token of each node, parents first. depth: [N] its position in the sentence.
        sees: [N, N] bool: row i is True at node i and at what stands before it.
        ends: [R] node of each sentence's end token.
        paths: [R, T'] nodes of each sentence, its end token repeated behind it; T' is the longest sentence's length.
    """

    def __init__(self, ids: Tensor) -> None:
        nodes: dict[tuple[int, ...], int] = {}
        parents: list[int] = []
        paths: list[list[int]] = []
        for row in ids.tolist():
            length = row.index(max(row)) + 1
            path: list[int] = []
            for end in range(1, length + 1):
                prefix = tuple(row[:end])
                if prefix not in nodes:
                    nodes[prefix] = len(nodes)
                    parents.append(path[-1] if path else -1)
                path.append(nodes[prefix])
            paths.append(path)
        longest = max(map(len, paths))
        sees = torch.eye(len(parents), dtype=torch.bool)
        for node, parent in enumerate(parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        device = ids.device
        self.ids = torch.tensor([prefix[-1] for prefix in nodes], device=device)
        self.depth = torch.tensor([len(prefix) - 1 for prefix in nodes], device=device)
        self.sees = sees.to(device)
        self.ends = torch.tensor([path[-1] for path in paths], device=device)
        self.paths = torch.tensor([path + path[-1:] * (longest - len(path)) for path in paths], device=device)

    def __len__(self) -> int:
        return len(self.ids)
