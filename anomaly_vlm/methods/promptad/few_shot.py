"""What PromptAD and FineGrainedAD share: a frozen V-V tower, a memory of the reference patches, prompts for each category.

One module holds all categories of a run, each with its own memory and its own learned prompts. A training step takes the
references of one category, so that only its parameters get gradients (SGD passes over the others), and each category is
trained as if it were alone. PromptAD (arXiv 2404.05231), sections 3.2 to 3.4.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, plus_next_attention
from anomaly_vlm.data.types import Batch, References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.promptad.category import Category, Learners
from anomaly_vlm.methods.promptad.fusion import Comparison, harmonic, similarity_factor
from anomaly_vlm.methods.promptad.prompt_learner import CategoryPrompts, ContextOptions
from anomaly_vlm.methods.shared.category_memory import CategoryMethod, category_key, category_name, of_categories
from anomaly_vlm.methods.shared.layers import Layers, tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_smooth, swap_red_blue, upsample
from anomaly_vlm.methods.shared.patch_memory import CoresetShare, PatchMemory
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt

TASKS = ("seg", "cls")


@dataclass(frozen=True)
class MemoryOptions:
    """The memory of the reference patches.

    Args:
        layers: 1-based vision blocks whose patches are held, see `tapped_layers`; `published` for 3 and 8 of 12, in
            proportion.
        tap: `published`: a block's output plus the attention of the block behind it, which is what the published code ends
            up with. `paper`: the block's output.
        coreset: Share of the reference patches that is held.
        memory_mb: Bound in MB on the distances that are held at a time.
    """

    layers: Layers | Literal["published"] = "published"
    tap: Literal["published", "paper"] = "published"
    coreset: CoresetShare = 1.0
    memory_mb: PositiveFloat = 256.0


class VVMemoryMethod(FrozenTokens, CategoryMethod):
    """Few-shot prompts with a patch memory.

    Args:
        backbone: Frozen towers; the papers have ViT-B/16+ of LAION-400M at 240 px.
        task: Which prompts are learned: `seg`, those of the pixel map; `cls`, those of the image score, which are two models
            in the papers; `both`, side by side, each as if alone. A single one gives map and score from its own prompts.
        contexts: Sizes of the learned contexts.
        memory: The memory of the reference patches.
        temperature: A number that divides similarities, such as CLIP's 0.01; `published` for the factor of the published
            codes, see `similarity_factor`.
        eval_size: Side of the maps in pixels (400 in the papers); None for that of the input.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        bgr_test: Whether red and blue of test images are swapped, as in the published codes, which read references as RGB.
            Their tokens are not cached.
        published_category: Category of a published file whose name does not tell it.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The tower has no such blocks.
    """

    reference_support = "required"

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        task: Literal["both", "seg", "cls"] = "both",
        contexts: ContextOptions = ContextOptions(),  # noqa: B008 (frozen)
        memory: MemoryOptions = MemoryOptions(),
        temperature: PositiveFloat | Literal["published"] = "published",
        eval_size: PositiveInt | None = None,
        sigma: Annotated[float, AtLeast(0)] = 4.0,
        bgr_test: bool = False,
        published_category: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.tasks = TASKS if task == "both" else (task,)
        self.sizes = {name: contexts.of_task(name) for name in self.tasks}
        self.memory = memory
        if memory.layers == "published":
            self.memory_layers = tuple(max(1, round(backbone.num_layers * share / 12)) for share in (3, 8))
        else:
            self.memory_layers = tapped_layers(backbone, memory.layers, option="memory.layers")
        self.factor = similarity_factor(temperature, backbone)
        self.eval_size, self.sigma, self.bgr_test = eval_size, sigma, bgr_test
        self.published_category = published_category
        self.categories = nn.ModuleDict()  # category_key -> Category

    # ---- what a method defines ---------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> CategoryPrompts:
        """New prompts of a category for a task."""
        raise NotImplementedError(f"{type(self).__name__} defines no new_learner")

    def encode_learned(self, learner: CategoryPrompts) -> Tensor:
        """Text features (normal, abnormal) `[U, 2, C]` of what is learned, unit norm."""
        raise NotImplementedError(f"{type(self).__name__} defines no encode_learned")

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        """Abnormal probability `[...]` of unit features `[..., C]` by their category's text features `[U, 2, C]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no abnormal_prob")

    def task_losses(self, task: str, learner: CategoryPrompts, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """Loss terms of a category's references.

        Args:
            task: `seg` or `cls`.
            learner: Prompts of the category for the task.
            features: Unit features `[k, N, C]` of the patches for `seg`, `[k, C]` of the images for `cls`.
            rows: Numbers of the k images among the references.

        Returns:
            Scalars by term.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no task_losses")

    def prepare(self, category: Category, references: References) -> None:
        """Computes, once, what else a method needs of the references; nothing by default."""

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any] | None:
        if self.bgr_test:
            return None  # an image has other tokens as a test image than as a reference
        return {"vv_from": 0, "memory_layers": list(self.memory_layers), "memory_tap": self.memory.tap}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Unit features of images.

        Args:
            images: `[M, 3, H, W]`, normalised.

        Returns:
            `cls` `[M, C]` of the ordinary path; `patches` `[M, N, C]` of the V-V path, which runs beside it from the first
            block on; `memory` `[M, layers, N, Dv]` of the ordinary path's inner layers, not projected.
        """
        clip = self.backbone
        tokens = clip.encode_image(images, layers=[*self.memory_layers, clip.num_layers], vv_from=0)
        inner = []
        for layer, states in zip(self.memory_layers, tokens.ordinary, strict=False):
            if self.memory.tap == "published":
                states = plus_next_attention(clip.visual.transformer.resblocks, states, layer)
            inner.append(states[:, 1:])
        features = {"cls": tokens.cls, "patches": clip.project(tokens.patches[-1]), "memory": torch.stack(inner, dim=1)}
        return {name: F.normalize(value.float(), dim=-1).to(tokens.cls.dtype) for name, value in features.items()}

    # ---- references --------------------------------------------------------------------------------------------------

    def fit_category(self, references: References) -> None:
        patches = self.frozen_tokens(references.batch)["memory"].to(self.device)
        options = self.memory
        banks = [
            PatchMemory(patches[:, i], coreset=options.coreset, memory_mb=options.memory_mb, seed=self.seed)
            for i in range(len(self.memory_layers))
        ]
        self.prepare(self._new_category(references.category, banks, list(references.batch.path)), references)

    def _new_category(self, name: str, banks: Sequence[PatchMemory], paths: Sequence[str] = ()) -> Category:
        """A category with this memory; prompts that it has already, such as loaded ones, stay."""
        key = category_key(name)
        learners: Learners = self.category(name).by_task if key in self.categories else {}
        learners = learners or {task: self.new_learner(name, task) for task in self.tasks}
        self.categories[key] = category = Category(name, banks, learners, paths).to(self.device)
        return category

    def generator(self, category: str, task: str) -> Any:
        """Generator of a category's prompts, which depends on seed, category and task alone."""
        return derived_generator(self.seed, zlib.crc32(category.encode()), TASKS.index(task))

    def all_categories(self) -> list[Category]:
        """All categories that have a memory."""
        return list(cast("Mapping[str, Category]", self.categories).values())

    def category(self, name: str) -> Category:
        """Memory and prompts of a category.

        Raises:
            UserError: It has no references; the message lists those that have.
        """
        if (key := category_key(name)) not in self.categories:
            listed = ", ".join(sorted(map(category_name, self.categories))) or "none"
            raise UserError(
                f"category '{name}' has no reference images in {type(self).__name__}'s memory (it has: {listed}): give it"
                " normal training images, or evaluate the others alone with dataset.test.categories"
            )
        return cast(Category, self.categories[key])

    # ---- scores ------------------------------------------------------------------------------------------------------

    def text_features(self, category: Category, task: str) -> Tensor:
        """Text features `[U, 2, C]` of a task, or of the only task there is; encoded where they are out of date."""
        learner = category.learner(task)
        if learner.learns and learner.stale:
            with torch.no_grad():
                learner.features.copy_(self.encode_learned(learner))
            learner.stale = False
        return learner.features

    @torch.no_grad()
    def compare(self, batch: Batch) -> Comparison:
        """Compares a batch, whose categories may differ, with texts and memory."""
        if self.bgr_test:
            batch = replace(batch, unencoded=swap_red_blue(batch.image, self.backbone.mean, self.backbone.std))
        tokens = self.frozen_tokens(batch)
        cls, patches, memory = (tokens[name].float() for name in ("cls", "patches", "memory"))
        visual, textual, score = (
            patches.new_empty(shape) for shape in (patches.shape[:2], patches.shape[:2], len(cls))
        )
        for name in dict.fromkeys(batch.category):
            rows = [i for i, other in enumerate(batch.category) if other == name]
            category = self.category(name)
            distances = [bank(memory[rows, i]) for i, bank in enumerate(category.banks)]
            visual[rows] = torch.stack(distances).mean(dim=0)
            textual[rows] = self.abnormal_prob(patches[rows], self.text_features(category, "seg")).float()
            score[rows] = self.abnormal_prob(cls[rows], self.text_features(category, "cls")).float()
        return Comparison(textual, visual, score, self.backbone.grid_of(batch.size))

    def image_score(self, textual: Tensor, peak: Tensor) -> Tensor:
        """Image scores `[B]` of those of the class feature `[B]` and the peaks of the memory's map `[B]`."""
        return harmonic(textual, peak)

    def predict(self, batch: Batch) -> Prediction:
        compared = self.compare(batch)
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        peak = compared.visual_map(size).flatten(1).amax(dim=1)
        maps = gaussian_smooth(upsample(compared.fused(), size, align_corners=False), self.sigma)
        return Prediction(self.image_score(compared.score, peak), maps)

    # ---- learning ----------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if len(set(batch.category)) > 1:
            raise UserError(
                f"{type(self).__name__} learns one category at a time: train on the references (train_on=references)"
            )
        if category_key(batch.category[0]) not in self.categories:
            raise UserError(
                f"training image '{batch.path[0]}' is of category '{batch.category[0]}', which has no reference images:"
                " few-shot prompts learn from the references alone (train_on=references)"
            )
        category, tokens = self.category(batch.category[0]), self.frozen_tokens(batch)
        values: dict[str, Tensor] = {}
        for task in self.tasks:
            learner = category.learner(task)
            if not learner.learns:
                raise UserError(
                    "the published file brought text features without the prompts behind them: nothing to learn"
                )
            features = tokens["patches" if task == "seg" else "cls"].float()
            for name, value in self.task_losses(task, learner, features, category.rows(batch.path)).items():
                values[name] = values[name] + value if name in values else value  # the tasks share no parameter
            learner.stale = True
        return values

    def invalidate_caches(self) -> None:
        for category in self.all_categories():
            for learner in category.by_task.values():
                learner.stale = learner.learns

    # ---- checkpoints: what is learned, the memories, the text features -----------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for category in self.all_categories():
            for task in self.tasks:
                # brought up to date in place, so in the checkpoint's state dict as well
                self.text_features(category, task)
        super().on_save_checkpoint(checkpoint)

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        """Makes the categories that a state names, with memories of the lengths that it has."""
        width = self.backbone.width
        for name, tensors in of_categories(state).items():
            if category_key(name) not in self.categories:
                empty = [
                    PatchMemory(torch.zeros(0, width), memory_mb=self.memory.memory_mb) for _ in self.memory_layers
                ]
                self._new_category(name, empty)
            self.category(name).adapt_to(tensors)
