"""What PromptAD and FineGrainedAD hold of a category: its memory of the reference patches, and its learned prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.promptad.prompt_learner import CategoryPrompts
from anomaly_vlm.methods.shared.patch_memory import PatchMemory

Learners = dict[str, CategoryPrompts]


class Category(nn.Module):
    """Memory and prompts of one category.

    Args:
        name: The category.
        banks: One memory for each layer.
        learners: Learned prompts by task (`seg`, `cls`).
        paths: Files of the reference images, in their order.
    """

    def __init__(
        self,
        name: str,
        banks: Sequence[PatchMemory],
        learners: Mapping[str, CategoryPrompts],
        paths: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.name, self.paths = name, list(paths)
        self.memory = nn.ModuleList(banks)
        self.learners = nn.ModuleDict(learners)

    def learner(self, task: str) -> CategoryPrompts:
        """The learned prompts of a task, or of the other one where it is the only one."""
        return self.by_task[task if task in self.learners else next(iter(self.learners))]

    @property
    def by_task(self) -> dict[str, CategoryPrompts]:
        """All learned prompts by task."""
        return dict(cast("Mapping[str, CategoryPrompts]", self.learners).items())

    @property
    def banks(self) -> list[PatchMemory]:
        """The memories, one for each layer."""
        return list(cast("Sequence[PatchMemory]", self.memory))

    def rows(self, paths: Sequence[str]) -> list[int]:
        """Numbers of images among the references.

        Raises:
            UserError: An image is no reference.
        """
        if foreign := [path for path in paths if path not in self.paths]:
            raise UserError(
                f"training image '{foreign[0]}' is no reference image of category '{self.name}': few-shot prompts learn from"
                " the references alone (train_on=references)"
            )
        return [self.paths.index(path) for path in paths]

    def adapt_to(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes on the sizes of stored tensors: as long a memory, and no parameters where they hold text features alone."""
        for i, bank in enumerate(self.banks):
            stored = tensors.get(f"memory.{i}.bank")
            if stored is not None and stored.ndim == 2 and len(stored) != len(bank.bank):
                bank.bank = bank.bank.new_zeros(len(stored), bank.bank.shape[1])
        for task, learner in self.by_task.items():
            stored_names = [name for name in tensors if name.startswith(f"learners.{task}.")]
            if stored_names == [f"learners.{task}.features"]:
                learner.drop_learned()
