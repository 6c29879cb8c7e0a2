"""What PromptAD and FineGrainedAD hold of a category: its memory of the reference patches and its learned prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.promptad.prompt_learner import PromptLearner
from anomaly_vlm.methods.shared.patch_memory import PatchMemory

Learners = dict[str, PromptLearner]


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
