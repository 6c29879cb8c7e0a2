"""PromptAD: prompts learned from a few normal images, which normal words turn into anomaly prompts.

Li, Zhang, Tan, Chen, Qu, Xie, Ma, "PromptAD: Learning Prompts with only Normal Samples for Few-Shot Anomaly Detection",
CVPR 2024, arXiv 2404.05231. The defaults are the published code's. Where the paper reads otherwise: `memory_tap`,
`temperature`, and in the loss config `eam.dim`; the published code keeps the epoch with the best AUROC on the *test* set
(`selection=best_test`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod
from anomaly_vlm.methods.promptad.prompt_learner import (
    PromptLearner,
    RawTexts,
    TextFamily,
    class_phrases,
    encode_filled,
    fill_family,
)


class PromptAD(VVMemoryMethod):
    """Semantic concatenation: `V word`, `V abnormal phrase` and `V A word` share the normal context V.

    Learned: V and A of each category and task (5,120 numbers for `seg`, 10,240 for `cls` on ViT-B/16+). Frozen: both towers.

    Args:
        backbone: frozen towers.
        texts: table of states and class words (`promptad_prompts`). A category that it lacks gets the generic states.
        options: see `VVMemoryMethod`.

    Reference: sections 3.2-3.4; published code, state of 2024-07.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "contrastive": frozenset({"contrastive"}),
        "eam": frozenset({"margin"}),
        "alignment": frozenset({"alignment"}),
    }

    def __init__(self, backbone: ClipBackbone, *, texts: Mapping[str, Any], **options: Any) -> None:
        super().__init__(backbone, **options)
        self.table = texts

    # ---- sentences ---------------------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> PromptLearner:
        return PromptLearner(
            {"image": TextFamily(self.backbone, *class_phrases(self.table, category), self.sizes[task])},
            self.sizes[task],
            self.generator(category, task),
            width=self.backbone.text_width,
            features=1,
            embed_dim=self.backbone.embed_dim,
        )

    def raw_texts(self, learner: PromptLearner) -> RawTexts:
        """Features of all sentences, encoded in one call."""
        return RawTexts(*encode_filled(self.backbone, *fill_family(self.backbone, learner, "image")))

    def encode_learned(self, learner: PromptLearner) -> Tensor:
        return self.raw_texts(learner).pair()[None]

    # ---- scores and losses -------------------------------------------------------------------------------------------

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        return (self.factor * features @ texts[0].T).softmax(dim=-1)[..., 1]

    def task_losses(self, task: str, learner: PromptLearner, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        raw, terms, values = self.raw_texts(learner), self.terms, {}
        normal, abnormal = raw.pair()
        if "contrastive" in terms:
            values["contrastive"] = terms["contrastive"](self.factor * features @ raw.candidates().T)
        if "eam" in terms:
            values["eam"] = terms["eam"](features, normal, abnormal)
        if "alignment" in terms:
            values["alignment"] = terms["alignment"](raw.manual, raw.learned)
        return values
