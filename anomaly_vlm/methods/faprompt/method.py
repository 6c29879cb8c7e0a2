"""FAPrompt: several abnormal sentences that share the normal one's context, adapted to the image by its own patches.

Zhu, Ong, Shen, Pang, "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection", ICCV 2025,
arXiv 2410.10289. Stands on AnomalyCLIP's towers. Where paper and published code differ, the default is the code:
`select` (which patches feed the prior), `score` (fusion), and in the loss config the weights of the two maps, the image
cross entropy, `image_focal`'s kind, `orthogonality.pairs` and `prior.over`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod, FrozenFeatures, pad_sentences
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample


class AbnormalityPrior(nn.Module):
    """DAP's network: selected patches [B, M, C] -> offset Omega [B, Dt] of the abnormal tokens."""

    def __init__(self, count: int, feature_dim: int, width: int, reduction: int) -> None:
        super().__init__()
        hidden = count * feature_dim // reduction
        self.linear1 = nn.Linear(count * feature_dim, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, selected: Tensor) -> Tensor:
        return self.linear2(F.relu(self.linear1(selected.flatten(1))))


class Texts(NamedTuple):
    """Raw text features: `normal` [C], `abnormal` [K, C] of the sentences without the image (stage 1)."""

    normal: Tensor
    abnormal: Tensor

    def pair(self) -> Tensor:
        """Normal feature and prototype of the abnormal ones [2, C], unit norm."""
        return F.normalize(torch.stack([self.normal, self.abnormal.mean(dim=0)]), dim=-1)


class Stages(NamedTuple):
    """What both stages give: `prob1`, `prob2` [B, N] abnormal probabilities of the patches before and after the adaptation,
    `cls` [B] of the global feature with the adapted texts, `offset` [B, Dt] (Omega)."""

    prob1: Tensor
    prob2: Tensor
    cls: Tensor
    offset: Tensor


class FAPrompt(DualPathMethod):
    """Compound abnormality prompts (CAP) with a data-dependent abnormality prior (DAP).

    Learned: contexts, deep tokens, the prior network. Frozen: both towers. Parameters start from `seed`.

    Args:
        backbone: frozen towers.
        class_word, state_word: what the sentences are about (`object`, `damaged`; '' for the paper's, without).
        normal_tokens, abnormal_tokens, abnormal_prompts: E (5), E' (2) and K (10).
        selected_patches: M (10) patches that enter the prior network.
        select: `first`: patches 0 .. M - 1 in raster order, what the published code does; `topk`: the M most abnormal
            patches of stage 1, what the paper says.
        reduction: width of the prior's hidden layer is M C / reduction (16).
        score: fusion of the image score: `code` (s + (2 S1 + S2) / 3) / 2, `paper` (s + (S1 + S2) / 2) / 2.
        options: see `DualPathMethod`; the local features are those of the last layer.

    Reference: sections 3.2-3.4; published code, state of 2025-07-17.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "image": PROBABILITY,
        "image_focal": PROBABILITY | {"focal_of_logits"},
        "focal_map1": PROBABILITY,
        "dice_map1": frozenset({"dice"}),
        "focal_map2": PROBABILITY,
        "dice_map2": frozenset({"dice"}),
        "orthogonality": frozenset({"orthogonality"}),
        "prior": frozenset({"prior"}),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        class_word: str = "object",
        state_word: str = "damaged",
        normal_tokens: int = 5,
        abnormal_tokens: int = 2,
        abnormal_prompts: int = 10,
        selected_patches: int = 10,
        select: Literal["first", "topk"] = "first",
        reduction: int = 16,
        score: Literal["code", "paper"] = "code",
        sigma: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, sigma=sigma, **options)
        if select not in ("first", "topk"):
            raise unknown_choice("method.select", str(select), ["first", "topk"])
        if score not in ("code", "paper"):
            raise unknown_choice("method.score", str(score), ["code", "paper"])
        if min(normal_tokens, abnormal_tokens, abnormal_prompts, selected_patches, reduction) < 1:
            raise UserError(
                "method: normal_tokens, abnormal_tokens, abnormal_prompts, selected_patches, reduction: at least 1 each"
            )
        if len(self.layers) != 1:
            raise UserError(f"method.layers {list(self.layers)}: FAPrompt compares the patches of one layer: give one")
        word = class_word.replace("_", " ")
        self.words = (word, f"{state_word} {word}".strip())
        self.select, self.fusion, self.selected_patches = select, score, selected_patches
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)  # the deep tokens drew from `seed`
            self.normal = nn.Parameter(self.new_tokens(1, normal_tokens))
            self.abnormal = nn.Parameter(self.new_tokens(abnormal_prompts, abnormal_tokens))
            self.prior = AbnormalityPrior(selected_patches, backbone.embed_dim, backbone.text_width, reduction)
        self._texts: Texts | None = None  # while the learned values stand still

    # ---- sentences: CAP ----------------------------------------------------------------------------------------------

    def normal_prompt(self) -> tuple[Tensor, Tensor]:
        """Ids [1, T] and embeddings [1, T, Dt]: start, V1 .. VE, class word, full stop, end."""
        ids, embedded = self.sentence(self.normal.shape[1], self.words[0])
        return ids[None], self.fill(embedded, self.normal)

    def abnormal_prompts(self, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Ids [B K, T] and embeddings [B K, T, Dt]: start, V1 .. VE, A1 .. AE' (+ Omega [B, Dt]), state, class word, end."""
        abnormal = self.abnormal[None] if offset is None else self.abnormal + offset[:, None, None]  # [B, K, E', Dt]
        abnormal = abnormal.flatten(0, 1)
        ids, embedded = self.sentence(self.normal.shape[1] + abnormal.shape[1], self.words[1])
        learned = torch.cat([self.normal.expand(len(abnormal), -1, -1), abnormal], dim=1)
        return ids.expand(len(abnormal), -1), self.fill(embedded, learned)

    def texts(self) -> Texts:
        """Stage 1: features without the image, one call for all sentences; without gradient encoded once."""
        if self._texts is not None and not torch.is_grad_enabled():
            return self._texts
        encoded = self.encode_sentences(*pad_sentences([self.normal_prompt(), self.abnormal_prompts()]))
        texts = Texts(encoded[0], encoded[1:])
        if not torch.is_grad_enabled():
            self._texts = texts
        return texts

    def adapted(self, offset: Tensor) -> Tensor:
        """Stage 2: abnormal features [B, K, C] whose tokens carry the offset [B, Dt]; one call for all images."""
        return self.encode_sentences(*self.abnormal_prompts(offset)).unflatten(0, (len(offset), -1))

    # ---- DAP ---------------------------------------------------------------------------------------------------------

    def selected(self, patches: Tensor, prob: Tensor) -> Tensor:
        """The patches [B, M, C] of [B, N, C] that enter the prior, by stage-1 probabilities [B, N]."""
        if patches.shape[1] < self.selected_patches:
            raise UserError(
                f"method.selected_patches is {self.selected_patches}, the image has {patches.shape[1]} patches: give fewer"
            )
        if self.select == "first":
            return patches[:, : self.selected_patches]
        index = prob.topk(self.selected_patches, dim=1).indices
        return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))

    def stages(self, features: FrozenFeatures, texts: Texts) -> Stages:
        """Both stages: similarities with the plain and with the adapted abnormal prototype."""
        patches = features.patches[0]  # [B, N, C]
        prob1 = self._abnormal(patches @ texts.pair().T)
        offset = self.prior(self.selected(patches, prob1.detach()))
        pairs = self.adapted_pairs(texts, self.adapted(offset))
        prob2 = self._abnormal(patches @ pairs.transpose(1, 2))
        cls = self._abnormal(torch.einsum("bc,bkc->bk", features.cls, pairs))
        return Stages(prob1, prob2, cls, offset)

    def adapted_pairs(self, texts: Texts, adapted: Tensor) -> Tensor:
        """Normal feature and adapted prototype of each image: [B, 2, C], unit norm."""
        prototype = adapted.mean(dim=1)  # of raw features, as published
        return F.normalize(torch.stack([texts.normal.expand_as(prototype), prototype], dim=1), dim=-1)

    def _abnormal(self, similarity: Tensor) -> Tensor:
        """[..., 2] -> [...]: softmax over (normal, abnormal), abnormal part."""
        return (similarity / self.temperature).softmax(dim=-1)[..., 1]

    def image_score(self, stages: Stages) -> Tensor:
        """Fusion of the global score with the patch maxima of both stages: [B]."""
        first, second = stages.prob1.amax(dim=1), stages.prob2.amax(dim=1)
        local = (2 * first + second) / 3 if self.fusion == "code" else (first + second) / 2
        return 0.5 * (stages.cls + local)

    def maps(self, stages: Stages, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Upsampled abnormal probabilities of both stages: [2, B, H, W]."""
        return upsample(to_grid(torch.stack([stages.prob1, stages.prob2]), grid), size, align_corners=False)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        features = self.frozen_features(batch)
        stages = self.stages(features, self.texts())
        maps = self.maps(stages, features.grid, batch.size)
        return Prediction(self.image_score(stages), gaussian_smooth(maps.mean(dim=0), self.sigma))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        features, texts, terms = self.frozen_features(batch), self.texts(), self.terms
        stages = self.stages(features, texts)
        values = {}
        if "image" in terms:
            values["image"] = terms["image"](stages.cls, batch.label).mean()
        if "image_focal" in terms:
            values["image_focal"] = terms["image_focal"](self.image_score(stages), batch.label).mean()
        if "orthogonality" in terms:
            values["orthogonality"] = terms["orthogonality"](texts.abnormal)
        if "prior" in terms:
            values["prior"] = terms["prior"](stages.offset, batch.label)
        if any("_map" in name for name in terms):
            mask = training_mask(batch.mask, batch.path, self.terms)
            both = self.maps(stages, features.grid, (mask.shape[-2], mask.shape[-1]))
            for i, maps in enumerate(both, start=1):
                values.update(map_losses(self.terms, maps[None], mask, suffix=f"_map{i}"))
        return values

    def invalidate_caches(self) -> None:
        self._texts = None
