"""PromptAD: prompts learned from a few normal images, which abnormal words turn into anomaly prompts.

Li, Zhang, Tan, Chen, Qu, Xie, Ma, "PromptAD: Learning Prompts with only Normal Samples for Few-Shot Anomaly Detection",
CVPR 2024, arXiv 2404.05231; published code, state of 2024-07. The defaults are the published code's. The paper reads
otherwise in `memory.tap`, `temperature`, and `eam.dim` of the loss configuration. The published code keeps the epoch with
the best AUROC on the *test* set (`selection=best_test`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod
from anomaly_vlm.methods.promptad.prompt_learner import (
    CategoryPrompts,
    FamilyFeatures,
    TextFamily,
    class_phrases,
    fill_family,
)
from anomaly_vlm.methods.shared.precision import product
from anomaly_vlm.texts import load_texts
from anomaly_vlm.texts.learned_context import encode_sentences


class PromptAD(VVMemoryMethod):
    """Semantic concatenation: `V word`, `V abnormal phrase` and `V A word` share the normal context V (sections 3.2 to 3.4).

    V and A of each category and task are learned: 5,120 numbers for `seg` and 10,240 for `cls` on ViT-B/16+. Both towers are
    frozen.

    Args:
        backbone: Frozen towers.
        texts: Table of states and class words: the name of a shipped one, a JSON file, or the table itself. A category that
            it lacks has the generic states.
        options: See `VVMemoryMethod`.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "contrastive": frozenset({"contrastive"}),
        "eam": frozenset({"margin"}),
        "alignment": frozenset({"alignment"}),
    }

    def __init__(
        self, backbone: ClipBackbone, *, texts: str | Mapping[str, Any] = "promptad_prompts", **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        self.table = load_texts(texts)

    # ---- sentences ---------------------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> CategoryPrompts:
        return CategoryPrompts(
            {"image": TextFamily(self.backbone, *class_phrases(self.table, category), self.sizes[task])},
            self.sizes[task],
            self.generator(category, task),
            width=self.backbone.text_width,
            features=1,
            embed_dim=self.backbone.embed_dim,
        )

    def sentence_features(self, learner: CategoryPrompts) -> FamilyFeatures:
        """Features of all sentences, encoded in one call."""
        return FamilyFeatures(*encode_sentences(self.backbone, *fill_family(self.backbone, learner, "image")))

    def encode_learned(self, learner: CategoryPrompts) -> Tensor:
        return self.sentence_features(learner).pair()[None]

    # ---- scores and losses -------------------------------------------------------------------------------------------

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        return product(self.factor * features, texts[0].T).softmax(dim=-1)[..., 1]

    def task_losses(self, task: str, learner: CategoryPrompts, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        sentences, terms, values = self.sentence_features(learner), self.terms, {}
        normal, abnormal = sentences.pair()
        if "contrastive" in terms:
            values["contrastive"] = terms["contrastive"](product(self.factor * features, sentences.candidates().T))
        if "eam" in terms:
            values["eam"] = terms["eam"](features, normal, abnormal)
        if "alignment" in terms:
            values["alignment"] = terms["alignment"](sentences.manual, sentences.learned)
        return values
