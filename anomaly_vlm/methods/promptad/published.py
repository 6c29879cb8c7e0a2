"""Published files of PromptAD and FineGrainedAD: one a category and task, `SEG-Seed_111-metal_nut-check_point.pt`.

They hold the memory banks and the text features, and not the prompts behind these; files of a whole state hold both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.published import Files, PublishedLayout
from anomaly_vlm.methods.shared.category_memory import PREFIX, category_key, category_name

if TYPE_CHECKING:
    from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod

FILE_NAME = re.compile(r"(?P<task>CLS|SEG)-Seed_\d+-(?P<category>.+)-check_point", re.IGNORECASE)
DERIVED = re.compile(r"token_(prefix|suffix)|tokenized|^model\.")  # follows from the backbone and its token table
CONTEXTS = "prompt_learner."


def take_contexts(
    content: dict[str, Tensor], names: tuple[str, ...] = ("normal_ctx", "abnormal_ctx")
) -> dict[str, Tensor]:
    """Takes the learned contexts out of a published file's tensors: all of `names`, or nothing where it has none of them."""
    if not any(CONTEXTS + name in content for name in names):
        return {}
    return {name: content.pop(CONTEXTS + name) for name in names}


@dataclass(frozen=True)
class CategoryFiles:
    """What a file of one category and task holds.

    Attributes:
        learner: (method, tensors) -> what a learner holds, under the learner's names; it takes these out of the tensors.
        shared: (method, files) -> what files bring that belongs to no category, under the method's names.
        ignored: Beginnings of keys that belong to no category.
    """

    learner: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
    shared: Callable[[Any, Files], dict[str, Tensor]] = lambda method, files: {}
    ignored: tuple[str, ...] = ()


def read_categories(method: VVMemoryMethod, files: Files, form: CategoryFiles) -> dict[str, Tensor]:
    """Published files by name as the method's own state.

    Raises:
        UserError: A file does not tell its category or has a task that the method does not have, tensors are missing or
            surplus, or a category lacks the file of one of the method's tasks.
    """
    state: dict[str, Tensor] = {}
    tasks: dict[str, list[str]] = {}
    for file, content in files.items():
        category, task = _named(method, file)
        if task not in method.tasks:
            if len(files) > 1:
                continue  # a folder's other half
            raise UserError(f"published file '{file}' is a {task} model: set method.task={task}")
        prefix = f"{PREFIX}{category_key(category)}."
        state |= {
            prefix + key: tensor.float()
            for key, tensor in _category_state(method, file, task, dict(content), form).items()
        }
        tasks.setdefault(category, []).append(task)
    for category, present in tasks.items():
        if lacking := [task for task in method.tasks if task not in present]:
            raise UserError(
                f"the published files of '{category}' lack the {lacking[0]} model: set method.task={present[0]}, or give a"
                " folder with both"
            )
    rest = {key: value for key, value in method.state_dict().items() if not key.startswith(PREFIX)}
    return {**rest, **form.shared(method, files), **state}


def _named(method: VVMemoryMethod, file: str) -> tuple[str, str]:
    """Category and task of a file: by its name, or by the method's options where that says nothing."""
    if match := FILE_NAME.search(file):
        return match["category"], match["task"].lower()
    names = [category_name(key) for key in method.categories]
    category = method.published_category or (names[0] if len(names) == 1 else None)
    if category is None:
        raise UserError(
            f"published file '{file}' does not tell its category: set method.published_category, or name it as published"
            " (SEG-Seed_111-CATEGORY-check_point.pt)"
        )
    if len(method.tasks) > 1:
        raise UserError(f"published file '{file}' does not tell its task: set method.task=seg or method.task=cls")
    return category, method.tasks[0]


def _category_state(
    method: VVMemoryMethod, file: str, task: str, content: dict[str, Tensor], form: CategoryFiles
) -> dict[str, Tensor]:
    """Tensors of a file under the names of a `Category`."""
    try:
        state = {f"memory.{i}.bank": content.pop(f"feature_gallery{i + 1}") for i in range(len(method.memory_layers))}
        state |= {f"learners.{task}.{key}": tensor for key, tensor in form.learner(method, content).items()}
    except KeyError as error:
        raise UserError(
            f"published file '{file}' has no {error.args[0]}: a file of {type(method).__name__} holds the memory banks and"
            " the text features of one category"
        ) from error
    if surplus := [key for key in content if not (DERIVED.search(key) or key.startswith(form.ignored))]:
        raise UserError(
            f"published file '{file}' holds more than {type(method).__name__}'s do: {', '.join(surplus[:4])}"
        )
    return state


def no_key(method: VVMemoryMethod, name: str) -> str:
    """Published files hold no single parameters: they are read by `read_categories`."""
    raise UserError(f"{type(method).__name__} publishes files of categories, which have no key for {name}")


def take_learner(method: VVMemoryMethod, content: dict[str, Tensor]) -> dict[str, Tensor]:
    """PromptAD's text features and, where a file has them, its contexts."""
    return {"features": content.pop("text_features")[None], **take_contexts(content)}


LAYOUT = PublishedLayout(
    key=no_key, whole=lambda method, files: read_categories(method, files, CategoryFiles(take_learner))
)
