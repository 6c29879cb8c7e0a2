"""What PromptAD and FineGrainedAD share: a frozen V-V tower, a memory of the reference patches, prompts for each category.

One module holds all categories of a run, each with its own memory and its own learned prompts. A training step sees the
references of one category, so that only its parameters get gradients (SGD passes over the others) and each category is
trained as if it were alone. PromptAD (arXiv 2404.05231), sections 3.2-3.4; published code.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone, plus_next_attention
from anomaly_vlm.data.types import Batch, References
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.promptad.category import Category, Learners
from anomaly_vlm.methods.promptad.fusion import Comparison, harmonic, similarity_factor
from anomaly_vlm.methods.promptad.prompt_learner import ContextSizes, PromptLearner
from anomaly_vlm.methods.shared.category_memory import CategoryMethod, category_key, category_name, of_categories
from anomaly_vlm.methods.shared.maps import gaussian_smooth, swap_red_blue, upsample
from anomaly_vlm.methods.shared.patch_memory import PatchMemory, checked_memory
from anomaly_vlm.methods.shared.seeding import derived_generator

TASKS = ("seg", "cls")


class VVMemoryMethod(FrozenTokens, CategoryMethod):
    """Few-shot prompts with a patch memory.

    Args:
        backbone: frozen towers (papers: ViT-B/16+ at 240 px, LAION-400M).
        task: `seg` learns the prompts of the pixel map, `cls` those of the image score: two models in the papers. `both`
            learns both side by side, each as if alone. A single one gives map and score from its own prompts.
        n_ctx, n_ctx_abnormal: tokens of a normal (4) and an abnormal context (1).
        n_pro: normal contexts, a number for both tasks or one each (`seg` 1, `cls` 3). n_pro_abnormal: abnormal ones (4).
        memory_layers: 1-based vision blocks whose patches are remembered; None: 3 and 8 of 12, in proportion.
        memory_tap: `code`: a block's output plus the attention of the block behind it, which the published code holds;
            `block`: the block's output, what the papers say.
        temperature: `raw_logit_scale`: similarities times the backbone's stored logit scale, which is the *logarithm* of
            CLIP's factor (4.6 in place of 100), as in the published codes; or a number that divides them (0.01).
        eval_size: side of the maps in pixels (400 in the papers); None: that of the input.
        sigma: of the Gaussian on the map, in pixels.
        bgr_test: test images with red and blue swapped, against references in RGB, as the published codes read them. Their
            tokens are not cached.
        coreset: share of the reference patches that the memory keeps. memory_mb: bound on its distances, in MB.
        published_category: of a published file whose name does not tell it.
        base: see `AnomalyMethod`.
    """

    reference_support = "required"

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        task: Literal["both", "seg", "cls"] = "both",
        n_ctx: int = 4,
        n_ctx_abnormal: int = 1,
        n_pro: int | Mapping[str, int] | None = None,
        n_pro_abnormal: int = 4,
        memory_layers: Sequence[int] | None = None,
        memory_tap: Literal["code", "block"] = "code",
        temperature: float | str = "raw_logit_scale",
        eval_size: int | None = None,
        sigma: float = 4.0,
        bgr_test: bool = False,
        coreset: float = 1.0,
        memory_mb: float = 256.0,
        published_category: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if task not in ("both", *TASKS):
            raise unknown_choice("method.task", str(task), ["both", *TASKS])
        if memory_tap not in ("code", "block"):
            raise unknown_choice("method.memory_tap", str(memory_tap), ["code", "block"])
        if eval_size is not None and eval_size < 1:
            raise UserError(
                f"method.eval_size is {eval_size}: give the side of the maps in pixels, or null for the input's"
            )
        checked_memory(memory_mb, coreset)
        counts = {"seg": 1, "cls": 3} if n_pro is None else n_pro
        counts = dict.fromkeys(TASKS, counts) if isinstance(counts, int) else counts
        if unknown := sorted(set(counts) - set(TASKS)):
            raise unknown_choice("task of method.n_pro", unknown[0], TASKS)
        self.tasks = TASKS if task == "both" else (task,)
        if absent := [t for t in self.tasks if t not in counts]:
            raise UserError(f"method.n_pro has no number for task {absent[0]}: give one number, or seg and cls")
        self.sizes = {t: ContextSizes(n_ctx, n_ctx_abnormal, counts[t], n_pro_abnormal) for t in self.tasks}
        depth = backbone.num_layers
        default = [max(1, round(depth * share / 12)) for share in (3, 8)]
        self.memory_layers = backbone.checked_layers(default if memory_layers is None else memory_layers)
        if not self.memory_layers:
            raise UserError("method.memory_layers is empty: give at least one vision block, or null")
        self.memory_tap, self.bgr_test = memory_tap, bgr_test
        self.factor = similarity_factor(temperature, backbone)
        self.eval_size, self.sigma = eval_size, sigma
        self.coreset, self.memory_mb = coreset, memory_mb
        self.published_category = published_category
        self.categories = nn.ModuleDict()  # category_key -> Category

    # ---- what a method defines ---------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> PromptLearner:
        """Prompts of a category as they start."""
        raise NotImplementedError

    def encode_learned(self, learner: PromptLearner) -> Tensor:
        """Text features [U, 2, C], unit norm (normal, abnormal), of what is learned."""
        raise NotImplementedError

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        """Abnormal probability [...] of unit features [..., C] by text features [U, 2, C] of their category."""
        raise NotImplementedError

    def task_losses(self, task: str, learner: PromptLearner, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """Loss terms of a category's shots `rows`: features [k, N, C] of their patches (`seg`) or [k, C] (`cls`)."""
        raise NotImplementedError

    def prepare(self, category: Category, references: References) -> None:
        """What else is made of the references, once."""

    # ---- image tower: frozen -----------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any] | None:
        if self.bgr_test:
            return None  # an image has other tokens as a test image than as a reference
        return {"vv_from": 0, "memory_layers": list(self.memory_layers), "memory_tap": self.memory_tap}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Unit features: `cls` [M, C] of the ordinary path, `patches` [M, N, C] of the V-V path that runs beside it from the
        first block on, `memory` [M, layers, N, Dv] of the ordinary path's inner layers, not projected."""
        clip = self.backbone
        tokens = clip.encode_image(images, layers=[*self.memory_layers, clip.num_layers], vv_from=0)
        inner = []
        for layer, states in zip(self.memory_layers, tokens.ordinary, strict=False):
            if self.memory_tap == "code":
                states = plus_next_attention(clip.visual.transformer.resblocks, states, layer)
            inner.append(states[:, 1:])
        features = {"cls": tokens.cls, "patches": clip.project(tokens.patches[-1]), "memory": torch.stack(inner, dim=1)}
        return {name: F.normalize(value.float(), dim=-1).to(tokens.cls.dtype) for name, value in features.items()}

    # ---- references --------------------------------------------------------------------------------------------------

    def fit_category(self, references: References) -> None:
        memory = self.frozen_tokens(references.batch)["memory"].to(self.device)
        banks = [
            PatchMemory(memory[:, i], coreset=self.coreset, memory_mb=self.memory_mb, seed=self.seed)
            for i in range(len(self.memory_layers))
        ]
        self.prepare(self._new_category(references.category, banks, list(references.batch.path)), references)

    def _new_category(self, name: str, banks: Sequence[PatchMemory], paths: Sequence[str] = ()) -> Category:
        """A category with this memory; prompts that it has already (loaded from a checkpoint) stay."""
        key = category_key(name)
        learners: Learners = self.category(name).by_task if key in self.categories else {}
        learners = learners or {task: self.new_learner(name, task) for task in self.tasks}
        self.categories[key] = category = Category(name, banks, learners, paths).to(self.device)
        return category

    def generator(self, category: str, task: str) -> Any:
        """Random numbers of a category's prompts: they depend on seed, category and task alone."""
        return derived_generator(self.seed, zlib.crc32(category.encode()), TASKS.index(task))

    def all_categories(self) -> list[Category]:
        """All categories that have a memory."""
        return list(cast("Mapping[str, Category]", self.categories).values())

    def category(self, name: str) -> Category:
        """What is known of a category, or a `UserError` that lists those that there are."""
        if (key := category_key(name)) not in self.categories:
            known = ", ".join(sorted(map(category_name, self.categories))) or "none"
            raise UserError(
                f"category '{name}' has no reference images in {type(self).__name__}'s memory (it has: {known}): give it"
                " normal training images, or evaluate the others alone with dataset.test.categories"
            )
        return cast(Category, self.categories[key])

    # ---- scores ------------------------------------------------------------------------------------------------------

    def texts(self, category: Category, task: str) -> Tensor:
        """Text features [U, 2, C] of a task, or of the only task there is; encoded where they are out of date."""
        learner = category.learner(task)
        if learner.learns and learner.stale:
            with torch.no_grad():
                learner.features.copy_(self.encode_learned(learner))
            learner.stale = False
        return learner.features

    @torch.no_grad()
    def compare(self, batch: Batch) -> Comparison:
        """A batch, whose categories may differ, against memory and texts."""
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
            near = [bank(memory[rows, i]) for i, bank in enumerate(category.banks)]
            visual[rows] = torch.stack(near).mean(dim=0)
            textual[rows] = self.abnormal_prob(patches[rows], self.texts(category, "seg")).float()
            score[rows] = self.abnormal_prob(cls[rows], self.texts(category, "cls")).float()
        height, width = (side // self.backbone.patch_size for side in batch.size)
        return Comparison(textual, visual, score, (height, width))

    def image_score(self, textual: Tensor, peak: Tensor) -> Tensor:
        """Image scores [B] from those of the class feature and the peaks of the memory's map [B]."""
        return harmonic(textual, peak)

    def predict(self, batch: Batch) -> Prediction:
        found = self.compare(batch)
        size = batch.size if self.eval_size is None else (self.eval_size, self.eval_size)
        peak = found.visual_map(size).flatten(1).amax(dim=1)
        maps = gaussian_smooth(upsample(found.fused(), size, align_corners=False), self.sigma)
        return Prediction(self.image_score(found.score, peak), maps)

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
                self.texts(category, task)  # brought up to date in place, so in the checkpoint's state dict as well
        super().on_save_checkpoint(checkpoint)

    def make_categories(self, state: Mapping[str, Tensor]) -> None:
        """Makes the categories that a state names, and gives the memories their lengths in it."""
        width = self.backbone.width
        for name, tensors in of_categories(state).items():
            if category_key(name) not in self.categories:
                empty = [PatchMemory(torch.zeros(0, width), memory_mb=self.memory_mb) for _ in self.memory_layers]
                self._new_category(name, empty)
            self.category(name).fit(tensors)
