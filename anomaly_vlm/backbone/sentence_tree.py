"""Sentences that share their beginnings, encoded as sequences in which every shared beginning stands once.

Exact under the text tower's causal mask: what a token becomes depends on the tokens before it alone, so sentences with the
same beginning have the same states there. Nothing behind an end token is ever read, and is left out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SentenceTree:
    """R sentences as the prefix trees of S groups of K sentences, each a sequence of up to N nodes.

    Args:
        ids: [R, T] token ids; the end token is the largest of a row.
        together: Sentences of a group, in order; None: all R. Small groups of sentences with long common beginnings
            cost less attention, large ones fewer tokens.
        prompts: Places of every group, directly behind the start token, that are left for prompts; the same in every
            sentence, so that each stands once.
        inserted: Whether the prompts lengthen the sentences. False: they overwrite the tokens that stand there.

    Attributes:
        depth: [S, N] each node's position in its sentence, inserted prompts not counted; 0 for a prompt's place and behind
            the last node.
        ids: [S, N] token of each node, parents first; 0 as in `depth`.
        source: [S, N] the place among all R T tokens of one that the node stands for; 0 as in `depth`.
        sees: [S, 1, N, N] bool: row i is True at node i and at what stands before it.
        ends: [S, K] place of each sentence's end token in its group's nodes; 0 where the last group has fewer sentences.
        paths: [R, T'] places of each sentence's tokens in the nodes of all groups, S N long, its end repeated behind it; T'
            is the longest sentence's length.
    """

    def __init__(self, ids: Tensor, *, together: int | None = None, prompts: int = 0, inserted: bool = False) -> None:
        rows = [row[: row.index(max(row)) + 1] for row in ids.tolist()]
        step = together or len(rows)
        starts = range(0, len(rows), step)
        groups = [_tree(rows[start : start + step], prompts, inserted) for start in starts]
        size = max(len(group.nodes) for group in groups)
        shape = (len(groups), size)
        self.ids, self.depth, self.source = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        self.sees = torch.eye(size, dtype=torch.bool).repeat(len(groups), 1, 1, 1)
        self.ends = torch.zeros(len(groups), step, dtype=torch.long)
        longest, paths = max(map(len, rows)) + prompts * inserted, []
        for g, (start, group) in enumerate(zip(starts, groups, strict=True)):
            for i, node in enumerate(group.nodes):
                if node.parent is not None:
                    self.sees[g, 0, i] |= self.sees[g, 0, node.parent]
                if node.row is not None:
                    row = start + node.row
                    self.ids[g, i], self.depth[g, i] = rows[row][node.position], node.position
                    self.source[g, i] = row * ids.shape[1] + node.position
            self.ends[g, : len(group.paths)] = torch.tensor([path[-1] for path in group.paths])
            paths += [[g * size + i for i in path + path[-1:] * (longest - len(path))] for path in group.paths]
        self.paths = torch.tensor(paths)
        for name in ("ids", "depth", "source", "sees", "ends", "paths"):
            setattr(self, name, getattr(self, name).to(ids.device))


class _Node(NamedTuple):
    """A node: its parent's place (the start token has none), and a token that it stands for (a prompt's place has none)."""

    parent: int | None
    row: int | None
    position: int


class _Group(NamedTuple):
    """The nodes of a group, and the places of each sentence's nodes."""

    nodes: list[_Node]
    paths: list[list[int]]


def _tree(rows: list[list[int]], prompts: int, inserted: bool) -> _Group:
    """The tree of a group's sentences, each a list of token ids up to its end token."""
    nodes = [_Node(None, 0, 0), *(_Node(i, None, 0) for i in range(prompts))]
    places: dict[tuple[int, ...], int] = {}  # beginning -> its last token's node
    paths = []
    for r, row in enumerate(rows):
        # an end token among the places of prompts that overwrite it is read there
        path = list(range(1 + prompts))[: None if inserted else len(row)]
        for position in range(1 if inserted else 1 + prompts, len(row)):
            beginning = tuple(row[: position + 1])
            if beginning not in places:
                places[beginning] = len(nodes)
                nodes.append(_Node(path[-1], r, position))
            path.append(places[beginning])
        paths.append(path)
    return _Group(nodes, paths)
