"""What a few-shot method holds of each category: its memory of the reference patches and its learned prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base import AnomalyMethod
from anomaly_vlm.methods.contexts import PromptLearner
from anomaly_vlm.methods.memory import PatchMemory, checked_memory

Learners = dict[str, PromptLearner]
PREFIX = "categories."


def category_key(name: str) -> str:
    """A category's name as the name of a module: without dots, and like no attribute of one (`@metal_nut`)."""
    return "@" + quote(name, safe=" ").replace(".", "%2E")


def category_name(key: str) -> str:
    """The category that `category_key` named so."""
    return unquote(key.removeprefix("@"))


def of_categories(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each category in a state dict of a method, under their names within the category."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith(PREFIX + "@"):
            category, _, rest = key.removeprefix(PREFIX).partition(".")
            found.setdefault(category_name(category), {})[rest] = tensor
    return found


class CategoryMethod(AnomalyMethod):
    """A method whose checkpoints bring the categories that it knows."""

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        """Makes the categories that a state names, their memories in its lengths."""
        raise NotImplementedError

    def check_learned(self, state: Mapping[str, Tensor], source: str) -> None:
        self.make_categories(state)
        super().check_learned(state, source)

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.make_categories(state)
        return super().load_state_dict(state, *args, **kwargs)


class MemoryMethod(CategoryMethod):
    """A method with memories of each category's reference patches and nothing else of its own; without references it goes on
    without them.

    Args:
        memory_mb: bound on the distances to the references held at a time, in MB.
        base: see `AnomalyMethod`.
    """

    shots: ClassVar[str] = "optional"

    def __init__(self, backbone: ClipBackbone, *, memory_mb: float = 256.0, **base: Any) -> None:
        super().__init__(backbone, **base)
        checked_memory(memory_mb)
        self.memory_mb = memory_mb
        self.categories = nn.ModuleDict()  # category_key -> memories by name

    def remembered(self) -> Sequence[str]:
        """The names of the frozen tokens that are remembered."""
        raise NotImplementedError

    @torch.no_grad()
    def remember(self, references: Sequence[References]) -> None:
        for shots in references:
            tokens = self.frozen(replace(shots.batch, image=shots.batch.image.to(self.device)))
            self._set_memories(shots.category, {name: tokens[name] for name in self.remembered()})

    def memory(self, category: str) -> Mapping[str, PatchMemory] | None:
        """The memories of a category by the name of their tokens; None where nothing is remembered (zero-shot).

        Raises:
            UserError: other categories are remembered, this one is not.
        """
        if not len(self.categories):
            return None
        if (key := category_key(category)) not in self.categories:
            known = ", ".join(sorted(map(category_name, self.categories)))
            raise UserError(
                f"category '{category}' has no reference images in {type(self).__name__}'s memory (it has: {known}): give"
                " it normal images, or set shots=0"
            )
        return cast("Mapping[str, PatchMemory]", self.categories[key])

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        for name, tensors in of_categories(state).items():
            empty = {key.removesuffix(".bank"): torch.zeros_like(value) for key, value in tensors.items()}
            self._set_memories(name, empty)

    def _set_memories(self, category: str, tokens: Mapping[str, Tensor]) -> None:
        memories = {
            name: PatchMemory(value.to(self.device), memory_mb=self.memory_mb) for name, value in tokens.items()
        }
        self.categories[category_key(category)] = nn.ModuleDict(memories)


class Category(nn.Module):
    """Memory and prompts of one category.

    Args:
        name: the category. banks: one memory a layer. learners: by task (`seg`, `cls`).
        paths: of the reference images, in their order.
    """

    def __init__(
        self, name: str, banks: Sequence[PatchMemory], learners: Mapping[str, PromptLearner], paths: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.name, self.paths = name, list(paths)
        self.memory = nn.ModuleList(banks)
        self.learners = nn.ModuleDict(learners)

    def learner(self, task: str) -> PromptLearner:
        """That of a task, or of the only task there is."""
        return self.by_task[task if task in self.learners else next(iter(self.learners))]

    @property
    def by_task(self) -> dict[str, PromptLearner]:
        return dict(cast("Mapping[str, PromptLearner]", self.learners).items())

    @property
    def banks(self) -> list[PatchMemory]:
        return list(cast("Sequence[PatchMemory]", self.memory))

    def rows(self, paths: Sequence[str]) -> list[int]:
        """The places of images among the references."""
        if foreign := [path for path in paths if path not in self.paths]:
            raise UserError(
                f"training image '{foreign[0]}' is no reference image of category '{self.name}': few-shot prompts learn from"
                " the references alone (train_on=references)"
            )
        return [self.paths.index(path) for path in paths]

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes on the form of stored tensors: as long a memory, and nothing learned where they hold text features alone."""
        for i, bank in enumerate(self.banks):
            stored = tensors.get(f"memory.{i}.bank")
            if stored is not None and stored.ndim == 2 and len(stored) != len(bank.bank):
                bank.bank = bank.bank.new_zeros(len(stored), bank.bank.shape[1])
        for task, learner in self.by_task.items():
            inside = [name for name in tensors if name.startswith(f"learners.{task}.")]
            if inside == [f"learners.{task}.features"]:
                learner.drop_learned()
