"""FiLo's words (FG-Des): fine-grained defect descriptions as sentences, and learned, image-conditioned contexts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.sentence_tree import SentenceTree
from anomaly_vlm.errors import UserError, unknown_choice

log = logging.getLogger("anomaly_vlm")

# What a plain table of the user's, `{category: [descriptions]}`, leaves out: WinCLIP's states, FiLo's sentences.
DEFAULTS: dict[str, Any] = {
    "normal_states": ["{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
                      "{} without damage"],
    "abnormal_states": ["damaged {}", "broken {}", "{} with flaw", "{} with defect", "{} with damage"],
    "description_template": "abnormal {} with DESCRIPTION",
    "position_template": "STATE at POSITION.",
    "positions": ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"],
    "class_word": {},
    "detector": {"general": ["anomaly", "damage", "broken", "defect", "contamination"], "separator": " . "},
}  # fmt: skip


class DefectTexts:
    """States and detector words of each category, from a table of descriptions.

    Args:
        table: `{list: {class_order, descriptions, detector_descriptions}}` beside sentences and words as the shipped table
            has them, or plainly `{category: [descriptions]}`.
        class_list: the list to look in; None: all of them, the last first.
        class_text: descriptions by class word, where the class registered last wins, as published (`last`: macaroni1 is
            described by macaroni2's), or by the category's own name (`own`).
        generic: descriptions of a category that the table lacks; empty: it has the general states alone.
        fine_grained: False leaves the descriptions out of the sentences (the paper's "without FG-Des"); the detector keeps
            its own.

    Raises:
        UserError: a wrong option, or a table of another form.
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        *,
        class_list: str | None = None,
        class_text: Literal["last", "own"] = "last",
        generic: Sequence[str] = (),
        fine_grained: bool = True,
    ) -> None:
        if class_text not in ("last", "own"):
            raise unknown_choice("method.class_text", str(class_text), ["last", "own"])
        lists = {name: entry for name, entry in table.items() if isinstance(entry, Mapping) and "descriptions" in entry}
        if not lists:
            plain = {name: entry for name, entry in table.items() if name not in DEFAULTS}
            if wrong := [name for name, entry in plain.items() if not _texts(entry)]:
                raise UserError(
                    f"descriptions: entry '{wrong[0]}' is no list of texts: expected {{category: [descriptions]}}"
                )
            lists = {"own": {"class_order": list(plain), "descriptions": plain, "detector_descriptions": plain}}
        if class_list is not None and class_list not in lists:
            raise unknown_choice("method.class_list", class_list, lists)
        self.words = {**DEFAULTS, **{key: table[key] for key in DEFAULTS if key in table}}
        if len(self.words["positions"]) != 9:
            raise UserError("descriptions: 'positions' needs nine phrases, row by row from the top left")
        self.class_words = {_plain(name): word for name, word in self.words["class_word"].items()}
        self.class_text, self.fine_grained, self.generic = class_text, fine_grained, tuple(generic)
        self.lists = list(lists.values()) if class_list is None else [lists[class_list]]
        self._noticed: set[str] = set()

    def word(self, category: str) -> str:
        """What the sentences call a category: `pcb3` -> `pcb`, `metal_nut` -> `metal nut`."""
        return self.class_words.get(_plain(category), category.replace("_", " "))

    def descriptions(self, category: str) -> Sequence[str]:
        """Fine-grained descriptions for the sentences."""
        if (entry := self._list_of(category)) is None:
            return self._generic(category)
        by_name = {_plain(name): texts for name, texts in entry["descriptions"].items()}
        if self.class_text == "own":
            return by_name[_plain(category)]
        order = [_plain(name) for name in entry.get("class_order", entry["descriptions"])]
        return {self.word(name): by_name[name] for name in order if name in by_name}[self.word(_plain(category))]

    def states(self, category: str) -> tuple[list[str], list[str]]:
        """Normal and abnormal states of a category, descriptions first."""
        word = self.word(category)
        template = self.words["description_template"].format(word)
        fine = (
            [template.replace("DESCRIPTION", text) for text in self.descriptions(category)] if self.fine_grained else []
        )
        normal, abnormal = (
            [state.format(word) for state in self.words[f"{kind}_states"]] for kind in ("normal", "abnormal")
        )
        return normal, [*fine, *abnormal]

    def sentence(self, state: str, position: str | None) -> str:
        """`STATE at POSITION.`, or `STATE.` without a position."""
        if position is None:
            return f"{state}."
        return self.words["position_template"].replace("STATE", state).replace("POSITION", position)

    def detector_words(self, category: str) -> list[str]:
        """General words and the category's own descriptions for the detector's caption, as spelled there."""
        entry = self._list_of(category)
        if entry is None:
            return [*self.words["detector"]["general"], *self._generic(category)]
        own = entry.get("detector_descriptions", entry["descriptions"])
        by_name = {_plain(name): texts for name, texts in own.items()}
        return [*self.words["detector"]["general"], *by_name.get(_plain(category), ())]

    def _list_of(self, category: str) -> Mapping[str, Any] | None:
        name = _plain(category)
        for entry in reversed(self.lists):
            if any(_plain(key) == name for key in entry["descriptions"]):
                return entry
        return None

    def _generic(self, category: str) -> Sequence[str]:
        if not self._noticed and self.generic:
            log.warning(
                "no defect descriptions for category '%s': %d generic ones are used, here and wherever the table lacks a"
                " category; 'anomaly-vlm descriptions method=filo' makes better ones",
                category,
                len(self.generic),
            )
        self._noticed.add(category)
        return self.generic


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _texts(entry: Any) -> bool:
    return isinstance(entry, Sequence) and not isinstance(entry, str) and all(isinstance(text, str) for text in entry)


class MetaNet(nn.Module):
    """Global feature [B, C] -> shift [B, Dt] of every context token of an image's sentences."""

    def __init__(self, dim: int, width: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, dim // reduction)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, width)

    def forward(self, feature: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(feature)))


class PromptLearner(nn.Module):
    """Learned context `ctx` [n, Dt] shared by all categories, shifted by the image: forward [B, C] -> [B, n, Dt]."""

    def __init__(self, length: int, dim: int, width: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(length, width) * 0.02)
        self.meta_net = MetaNet(dim, width)

    def forward(self, feature: Tensor) -> Tensor:
        return self.ctx + self.meta_net(feature)[:, None]


class RawTexts(NamedTuple):
    """Features of one image's sentences, not normalised: `normal` [states, C], `abnormal` [states, positions, C]."""

    normal: Tensor
    abnormal: Tensor


class Sentences:
    """The sentences of each category as trees of shared beginnings, built once.

    Args:
        texts: the words. length: context tokens in front. positioned: abnormal sentences end with a position.
    """

    def __init__(self, texts: DefectTexts, length: int, *, positioned: bool = True) -> None:
        self.texts, self.length, self.positioned = texts, length, positioned
        self._trees: dict[tuple, SentenceTree] = {}

    def lines(self, category: str, position: int | None = None) -> tuple[list[str], list[str]]:
        """Normal and abnormal sentences without their context; position fastest, all nine where None is chosen."""
        normal, abnormal = self.texts.states(category)
        phrases: Sequence[str | None] = [None]
        if self.positioned:
            phrases = self.texts.words["positions"] if position is None else [self.texts.words["positions"][position]]
        say = self.texts.sentence
        return [say(state, None) for state in normal], [say(state, phrase) for state in abnormal for phrase in phrases]

    def tree(self, backbone: ClipBackbone, category: str, kind: str, position: int | None = None) -> SentenceTree:
        """The tree of a category's `normal` or `abnormal` sentences, context placeholders included."""
        key = (category, kind, position if kind == "abnormal" else None, backbone.text.token_embedding.weight.device)
        if key not in self._trees:
            front = " ".join(["X"] * self.length)
            lines = self.lines(category, position)[kind == "abnormal"]
            ids = backbone.tokenize([f"{front} {line}" for line in lines])
            nine = kind == "abnormal" and self.positioned and position is None
            self._trees[key] = SentenceTree(ids, together=len(self.texts.words["positions"]) if nine else None)
        return self._trees[key]


def embed(backbone: ClipBackbone, tree: SentenceTree, context: Tensor) -> Tensor:
    """Embeddings [B, S, N, Dt] of the tree's nodes, without positions, placeholders filled with the context [B, n, Dt]."""
    nodes = backbone.text.token_embedding(tree.ids).detach().expand(len(context), -1, -1, -1)
    filled = context[:, None].expand(-1, nodes.shape[1], -1, -1)
    return torch.cat([nodes[:, :, :1], filled, nodes[:, :, 1 + context.shape[1] :]], dim=2)
