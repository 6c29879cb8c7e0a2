"""Sentences that share their beginnings, encoded as sequences in which every shared beginning stands once.

Exact under the text tower's causal mask: what a token becomes depends on the tokens before it alone, so sentences with the
same beginning have the same states there. Nothing behind an end token is ever read, and is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SentenceTree:
    """R sentences as the prefix trees of S groups, each a sequence of up to N nodes.

    Args:
        ids: [R, T] token ids; the end token is the largest of a row.
        together: Sentences of a group, in order; None: all R. Small groups of sentences with long common beginnings
            cost less attention, large ones fewer tokens.

    Attributes:
        ids: [S, N] token of each node, parents first; 0 behind the last one.
        depth: [S, N] its position in the sentence.
        sees: [S, 1, N, N] bool: row i is True at node i and at what stands before it.
        ends: [R] place of each sentence's end token in the nodes of all groups, S N long.
        paths: [R, T'] places of each sentence's tokens, its end repeated behind it; T' is the longest sentence's
            length.
    """

    def __init__(self, ids: Tensor, *, together: int | None = None) -> None:
        rows = [row[: row.index(max(row)) + 1] for row in ids.tolist()]
        step = together or len(rows)
        groups = [_tree(rows[start : start + step]) for start in range(0, len(rows), step)]
        size = max(len(tokens) for tokens, _, _, _ in groups)
        shape = (len(groups), size)
        self.ids, self.depth = torch.zeros(shape, dtype=ids.dtype), torch.zeros(shape, dtype=torch.long)
        self.sees = torch.eye(size, dtype=torch.bool).repeat(len(groups), 1, 1, 1)
        longest, paths = max(map(len, rows)), []
        for g, (tokens, depth, parents, own) in enumerate(groups):
            self.ids[g, : len(tokens)] = torch.tensor(tokens, dtype=ids.dtype)
            self.depth[g, : len(tokens)] = torch.tensor(depth)
            for node, parent in enumerate(parents):
                if parent >= 0:
                    self.sees[g, 0, node] |= self.sees[g, 0, parent]
            paths += [[g * size + node for node in path + path[-1:] * (longest - len(path))] for path in own]
        self.paths = torch.tensor(paths)
        self.ends = self.paths[:, -1].clone()
        for name in ("ids", "depth", "sees", "ends", "paths"):
            setattr(self, name, getattr(self, name).to(ids.device))


def _tree(rows: list[list[int]]) -> tuple[list[int], list[int], list[int], list[list[int]]]:
    """Of a group's sentences: token, depth and parent (-1: none) of each node, and each sentence's nodes."""
    nodes: dict[tuple[int, ...], int] = {}
    parents: list[int] = []
    paths: list[list[int]] = []
    for row in rows:
        path: list[int] = []
        for end in range(1, len(row) + 1):
            prefix = tuple(row[:end])
            if prefix not in nodes:
                nodes[prefix] = len(nodes)
                parents.append(path[-1] if path else -1)
            path.append(nodes[prefix])
        paths.append(path)
    return [prefix[-1] for prefix in nodes], [len(prefix) - 1 for prefix in nodes], parents, paths
