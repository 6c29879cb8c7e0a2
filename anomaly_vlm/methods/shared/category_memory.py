"""What a few-shot method holds of each category: a memory of its reference patches, and its learned prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import quote, unquote

import torch
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.few_shot import FewShot
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.shared.patch_memory import PatchMemory
from anomaly_vlm.options import PositiveFloat

Encoded = list[list[Tensor]]  # view (turned or not) -> image -> its patches [n, D]
PREFIX = "categories."  # of the names in a state dict


def category_key(name: str) -> str:
    """The name of the module that holds a category: without dots, and like no attribute of a module (`@metal_nut`)."""
    return "@" + quote(name, safe=" ").replace(".", "%2E")


def category_name(key: str) -> str:
    """The category whose module is named `key`; the inverse of `category_key`."""
    return unquote(key.removeprefix("@"))


def of_categories(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups the tensors of a method's state dict by category.

    Returns:
        For each category, its tensors by their names within the category.
    """
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith(PREFIX + "@"):
            category, _, rest = key.removeprefix(PREFIX).partition(".")
            grouped.setdefault(category_name(category), {})[rest] = tensor
    return grouped


class CategoryMethod(FewShot):
    """A method whose checkpoints bring what it holds of each category."""

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        """Makes the modules of the categories that a state names, in the sizes that the state has."""
        raise NotImplementedError(f"{type(self).__name__} defines no make_categories")

    def check_learned(self, state: Mapping[str, Tensor], source: str) -> None:
        self.make_categories(state)
        super().check_learned(state, source)

    def load_state_dict(self, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.make_categories(state)
        return super().load_state_dict(state, *args, **kwargs)


class MemoryMethod(FrozenTokens, CategoryMethod):
    """A method that compares with memories of each category's reference patches, and is zero-shot without references.

    Args:
        backbone: Frozen towers.
        memory_mb: Bound in MB on the distances to the references that are held at a time.
        base: See `AnomalyMethod`.
    """

    reference_support: Literal["none", "optional", "required"] = "optional"

    def __init__(self, backbone: ClipBackbone, *, memory_mb: PositiveFloat = 256.0, **base: Any) -> None:
        super().__init__(backbone, **base)
        self.memory_mb = memory_mb
        self.categories = nn.ModuleDict()  # `category_key` -> memories by the name of their tokens

    def memory_token_names(self) -> Sequence[str]:
        """Names of the frozen tokens that go into the memory."""
        raise NotImplementedError(f"{type(self).__name__} defines no memory_token_names")

    def encode_references(self, references: References) -> Mapping[str, Encoded]:
        """Encodes reference images for the memory, by the name of their tokens."""
        tokens = self.frozen_tokens(references.batch)
        return {name: [list(tokens[name])] for name in self.memory_token_names()}

    def fit_category(self, references: References) -> None:
        self.fit_encoded(references.category, self.encode_references(references))

    def fit_encoded(self, category: str, encoded: Mapping[str, Encoded], *, without: Collection[int] = ()) -> None:
        """Makes the memory of a category from its encoded references, but for some of them.

        To score each reference by the others takes one encoding of each.

        Args:
            category: The category.
            encoded: What `encode_references` has made.
            without: Positions of references that are left out.
        """
        kept = {
            name: [image for view in views for i, image in enumerate(view) if i not in without]
            for name, views in encoded.items()
        }
        self._set_memories(category, {name: torch.cat(images) for name, images in kept.items()})

    def memory(self, category: str) -> Mapping[str, PatchMemory] | None:
        """The memories of a category by the name of their tokens; None where no category has references (zero-shot).

        Raises:
            UserError: Other categories have references, this one has none.
        """
        if not len(self.categories):
            return None
        if (key := category_key(category)) not in self.categories:
            others = ", ".join(sorted(map(category_name, self.categories)))
            raise UserError(
                f"category '{category}' has no reference images in {type(self).__name__}'s memory (it has: {others}): give"
                " it normal images, or set shots=0"
            )
        return cast("Mapping[str, PatchMemory]", self.categories[key])

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        for name, tensors in of_categories(state).items():
            empty = {key.removesuffix(".bank"): torch.zeros_like(value) for key, value in tensors.items()}
            self._set_memories(name, empty, coreset=1.0)  # what is stored has been thinned out already

    def memory_options(self) -> dict[str, Any]:
        """Options of the `PatchMemory` of every category."""
        return {"memory_mb": self.memory_mb}

    def _set_memories(self, category: str, tokens: Mapping[str, Tensor], **changes: Any) -> None:
        options = {**self.memory_options(), **changes}
        memories = {name: PatchMemory(value.to(self.device), **options) for name, value in tokens.items()}
        self.categories[category_key(category)] = nn.ModuleDict(memories)
