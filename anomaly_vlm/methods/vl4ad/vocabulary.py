"""Classes as lists of concepts: prompt ensembling, class merging and further columns for unknown objects (VL4AD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import FrozenClip
from anomaly_vlm.errors import UserError, unknown_choice

BATCH = 256  # texts encoded at a time


@dataclass(frozen=True)
class Columns:
    """The columns of a softmax over classes.

    Attributes:
        names: Names of the columns, known ones first.
        num_known: Number K of known columns.
        texts: The concepts of all columns, those of the known classes first, in class order.
        members: Of each column, its positions in `texts`.
        of_class: Column of each known class, by train id.
    """

    names: tuple[str, ...]
    num_known: int
    texts: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    of_class: tuple[int, ...]


# What lies around road users, in two groups. They join classes with long common borders, where the masks of both are weak,
# and no two that an unknown object may look like. This project's, for drawn scenes.
SURROUNDINGS: Mapping[str, Sequence[str]] = {
    "ground": ("road", "sidewalk", "terrain"),
    "background": ("building", "wall", "fence", "vegetation", "sky"),
}


class Vocabulary:
    """The known classes and the words for them.

    Args:
        table: `cityscapes_concepts` (a list of `class`, `concepts`, in the order of the train ids), `templates`,
            `merge_groups` (name to classes), `ood_prompts` (lists of concepts).
        ensembling: Whether a class is all of its concepts; False for its name alone.

    Raises:
        UserError: An entry is missing.
    """

    def __init__(self, table: Mapping[str, Any], *, ensembling: bool = True) -> None:
        for key in ("cityscapes_concepts", "templates", "merge_groups", "ood_prompts"):
            if not table.get(key):
                raise UserError(f"table of texts has no '{key}': give a table in the form of vl4ad_prompts.json")
        rows = table["cityscapes_concepts"]
        self.classes: tuple[str, ...] = tuple(row["class"] for row in rows)
        self.concepts = tuple(tuple(row["concepts"]) if ensembling else (row["class"],) for row in rows)
        self.templates: tuple[str, ...] = tuple(table["templates"])
        self.groups: Mapping[str, Sequence[str]] = table["merge_groups"]
        self.proposed: Sequence[Sequence[str]] = table["ood_prompts"]

    def columns(
        self, merge: str | Mapping[str, Sequence[str]] = "none", ood: str | Sequence[str | Sequence[str]] = ()
    ) -> Columns:
        """The columns after merging classes, with those of unknown objects behind them.

        Args:
            merge: `none`, `cityscapes_groups` (the table's groups), `surroundings` (`SURROUNDINGS`), or name to classes.
                Classes in no group stay alone.
            ood: Concepts of unknown objects, or lists of them; `proposed` for the table's.

        Raises:
            UserError: A class is unknown or in two groups, or a concept is no text.
        """
        groups = self._groups(merge)
        further = [list(entry) if not isinstance(entry, str) else [entry] for entry in self._further(ood)]
        first, positions = 0, []
        for concepts in self.concepts:
            positions.append(tuple(range(first, first + len(concepts))))
            first += len(concepts)
        members = [tuple(p for i in group for p in positions[i]) for group in groups.values()]
        of_class = [0] * len(self.classes)
        for column, group in enumerate(groups.values()):
            for i in group:
                of_class[i] = column
        texts = [concept for concepts in self.concepts for concept in concepts]
        for entry in further:
            members.append(tuple(range(len(texts), len(texts) + len(entry))))
            texts += entry
        names = (*groups, *(entry[0] for entry in further))
        return Columns(names, len(groups), tuple(texts), tuple(members), tuple(of_class))

    def _groups(self, merge: str | Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        if isinstance(merge, str):
            named = {"none": {}, "cityscapes_groups": self.groups, "surroundings": SURROUNDINGS}
            if merge not in named:
                raise unknown_choice("method.merge", merge, [*named, "{name: [classes]}"])
            merge = named[merge]
        groups: dict[str, list[int]] = {}
        taken: dict[str, str] = {}
        for group, names in merge.items():
            for name in names:
                if name not in self.classes:
                    raise unknown_choice(f"class in method.merge.{group}", name, self.classes)
                if name in taken:
                    raise UserError(
                        f"method.merge puts class '{name}' into {taken[name]} and {group}: give it one group"
                    )
                taken[name] = group
                groups.setdefault(group, []).append(self.classes.index(name))
        for i, name in enumerate(self.classes):
            if name not in taken:
                if name in groups:
                    raise UserError(
                        f"method.merge has a group '{name}' without the class of that name: rename the group"
                    )
                groups[name] = [i]
        return groups

    def _further(self, ood: str | Sequence[str | Sequence[str]]) -> Sequence[str | Sequence[str]]:
        if isinstance(ood, str):
            if ood != "proposed":
                raise unknown_choice("method.ood_prompts", ood, ["proposed", "[concept, [concept, synonym], ...]"])
            return self.proposed
        for entry in ood:
            words = [entry] if isinstance(entry, str) else list(entry)
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise UserError(f"method.ood_prompts holds {entry!r}: give a text, or a list of texts for one object")
        return ood


@torch.no_grad()
def concept_vectors(clip: FrozenClip, texts: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Vectors of concepts: each in all templates, features normalised, averaged, normalised again.

    Args:
        clip: Frozen towers.
        texts: M concepts.
        templates: Sentences with `{}` for the concept.

    Returns:
        `[M, C]`, unit norm.
    """
    sentences = [template.format(text) for text in texts for template in templates]
    features = [
        F.normalize(clip.encode_text(clip.tokenize(sentences[i : i + BATCH])), dim=-1)
        for i in range(0, len(sentences), BATCH)
    ]
    by_text = torch.unflatten(torch.cat(features), 0, (len(texts), len(templates)))
    return F.normalize(by_text.mean(dim=1), dim=-1)


def centred(vectors: Tensor, count: int) -> Tensor:
    """Subtracts the mean of the first `count` vectors `[M, C]` from all, and normalises.

    Those of an untrained text tower lie close together.
    """
    return F.normalize(vectors - vectors[:count].mean(dim=0), dim=-1)
