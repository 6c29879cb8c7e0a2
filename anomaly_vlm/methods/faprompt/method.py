"""FAPrompt: several abnormal sentences that share the context of the normal one, adapted to each image by its own patches.

Zhu, Ong, Shen, Pang, "Fine-grained Abnormality Prompt Learning for Zero-shot Anomaly Detection", ICCV 2025,
arXiv 2410.10289. The method stands on AnomalyCLIP's towers. The defaults are those of the published code. It differs from
the paper's text in the patches that feed the prior (`select`), in the fusion of the image score (`score`), in the state word
and in the losses (`loss=faprompt_paper` has the paper's).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.losses import PROBABILITY
from anomaly_vlm.losses.maps import map_losses, training_mask
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathFeatures, DualPathMethod
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, upsample
from anomaly_vlm.methods.shared.precision import product, summed_product
from anomaly_vlm.options import AtLeast, PositiveInt
from anomaly_vlm.texts.learned_context import insert_context, pad_sentences


class AbnormalityPrior(nn.Module):
    """The network of the data-dependent abnormality prior (DAP): patches to an offset of the abnormal tokens.

    Args:
        count: M, number of patches.
        feature_dim: C, width of the patches.
        width: Dt, width of the text tower.
        reduction: The hidden layer has M C / reduction channels.
    """

    def __init__(self, count: int, feature_dim: int, width: int, reduction: int) -> None:
        super().__init__()
        hidden = count * feature_dim // reduction
        self.linear1 = nn.Linear(count * feature_dim, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, selected: Tensor) -> Tensor:
        """Maps selected patches `[B, M, C]` to the offset Omega `[B, Dt]`."""
        offset: Tensor = self.linear2(F.relu(self.linear1(selected.flatten(1))))
        return offset


class CompoundTexts(NamedTuple):
    """Text features of the sentences as they are without an image, not normalised.

    Attributes:
        normal: `[C]`.
        abnormal: `[K, C]`.
    """

    normal: Tensor
    abnormal: Tensor

    def pair(self) -> Tensor:
        """The normal feature and the prototype (mean) of the abnormal ones `[2, C]`, unit norm."""
        return F.normalize(torch.stack([self.normal, self.abnormal.mean(dim=0)]), dim=-1)


class StageProbabilities(NamedTuple):
    """What both stages compute: before and after the abnormal sentences are adapted to the image.

    Attributes:
        prob1: Abnormal probabilities `[B, N]` of the patches with the plain sentences.
        prob2: The same `[B, N]` with the adapted sentences.
        cls: Abnormal probability `[B]` of the global feature with the adapted sentences.
        offset: Omega `[B, Dt]`, which the abnormal tokens are moved by.
    """

    prob1: Tensor
    prob2: Tensor
    cls: Tensor
    offset: Tensor


class FAPrompt(DualPathMethod):
    """Compound abnormality prompts (CAP) with a data-dependent abnormality prior (DAP).

    The contexts, the deep tokens and the prior network are learned, and start from `seed`. Both towers are frozen. The
    sources are sections 3.2 to 3.4 and the published code of 2025-07-17.

    Args:
        backbone: Frozen towers.
        class_word: What the sentences are about; underscores become blanks.
        state_word: Stands in front of the class word in the abnormal sentences. The paper has none: an empty text.
        normal_tokens: E, number of learned tokens that all sentences share.
        abnormal_tokens: E', number of learned tokens of each abnormal sentence.
        abnormal_prompts: K, number of abnormal sentences.
        selected_patches: M, number of patches that enter the prior network.
        select: Which patches these are. `published`: the first M in raster order. `paper`: the M most abnormal ones.
        reduction: The hidden layer of the prior network has M C / reduction channels.
        score: How the image score is fused from the global score s and the largest patch scores S1 and S2 of both stages.
            `published`: (s + (2 S1 + S2) / 3) / 2. `paper`: (s + (S1 + S2) / 2) / 2.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        options: See `DualPathMethod`.

    Raises:
        UserError: `layers` names more than one block.
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
        normal_tokens: PositiveInt = 5,
        abnormal_tokens: PositiveInt = 2,
        abnormal_prompts: PositiveInt = 10,
        selected_patches: PositiveInt = 10,
        select: Literal["published", "paper"] = "published",
        reduction: PositiveInt = 16,
        score: Literal["published", "paper"] = "published",
        sigma: Annotated[float, AtLeast(0)] = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, sigma=sigma, **options)
        if len(self.layers) != 1:
            raise UserError(
                f"method.layers is {list(self.layers)}: FAPrompt compares the patches of one block: give one"
            )
        word = class_word.replace("_", " ")
        self.words = (word, f"{state_word} {word}".strip())
        self.select, self.score, self.selected_patches = select, score, selected_patches
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)  # the deep tokens drew from `seed`
            self.normal = nn.Parameter(self.new_tokens(1, normal_tokens))
            self.abnormal = nn.Parameter(self.new_tokens(abnormal_prompts, abnormal_tokens))
            self.prior = AbnormalityPrior(selected_patches, backbone.embed_dim, backbone.text_width, reduction)
        self._texts: CompoundTexts | None = None  # text features, dropped when learned values change

    # ---- sentences: CAP ----------------------------------------------------------------------------------------------

    def normal_prompt(self) -> tuple[Tensor, Tensor]:
        """Token ids `[1, T]` and embeddings `[1, T, Dt]` of the normal sentence: start, V1 .. VE, class word, end."""
        ids, embedded = self.sentence(self.normal.shape[1], self.words[0])
        return ids[None], insert_context(embedded, self.normal)

    def abnormal_prompts(self, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The abnormal sentences: start, V1 .. VE, A1 .. AE', state word, class word, end.

        Args:
            offset: Omega `[B, Dt]` for the tokens A of B images; None for the plain sentences (B = 1).

        Returns:
            Token ids `[B K, T]` and embeddings `[B K, T, Dt]`.
        """
        abnormal = self.abnormal[None] if offset is None else self.abnormal + offset[:, None, None]  # [B, K, E', Dt]
        abnormal = abnormal.flatten(0, 1)
        ids, embedded = self.sentence(self.normal.shape[1] + abnormal.shape[1], self.words[1])
        learned = torch.cat([self.normal.expand(len(abnormal), -1, -1), abnormal], dim=1)
        return ids.expand(len(abnormal), -1), insert_context(embedded, learned)

    def texts(self) -> CompoundTexts:
        """Encodes the plain sentences of stage 1 in one call; outside of training once."""
        if self._texts is not None and not torch.is_grad_enabled():
            return self._texts
        encoded = self.encode_sentences(*pad_sentences([self.normal_prompt(), self.abnormal_prompts()]))
        texts = CompoundTexts(encoded[0], encoded[1:])
        if not torch.is_grad_enabled():
            self._texts = texts
        return texts

    def adapted(self, offset: Tensor) -> Tensor:
        """Encodes the adapted sentences of stage 2 for all images in one call.

        Args:
            offset: Omega `[B, Dt]`.

        Returns:
            Abnormal text features `[B, K, C]`, not normalised.
        """
        features = self.encode_sentences(*self.abnormal_prompts(offset))
        return features.view(len(offset), -1, features.shape[-1])

    # ---- prior: DAP --------------------------------------------------------------------------------------------------

    def selected(self, patches: Tensor, prob: Tensor) -> Tensor:
        """Selects the patches that enter the prior network.

        Args:
            patches: `[B, N, C]`.
            prob: Their abnormal probabilities `[B, N]` in stage 1.

        Returns:
            `[B, M, C]`.

        Raises:
            UserError: The image has fewer than M patches.
        """
        if patches.shape[1] < self.selected_patches:
            raise UserError(
                f"method.selected_patches is {self.selected_patches}, the image has {patches.shape[1]} patches: give fewer"
            )
        if self.select == "published":
            return patches[:, : self.selected_patches]
        index = prob.topk(self.selected_patches, dim=1).indices
        return patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))

    def stages(self, features: DualPathFeatures, texts: CompoundTexts) -> StageProbabilities:
        """Compares the features with the plain sentences, adapts these to the image, and compares again."""
        patches = features.patches[0]  # [B, N, C]
        prob1 = self._abnormal(product(patches, texts.pair().T))
        offset = self.prior(self.selected(patches, prob1.detach()))
        pairs = self.adapted_pairs(texts, self.adapted(offset))
        prob2 = self._abnormal(product(patches, pairs.transpose(1, 2)))
        cls = self._abnormal(summed_product("bc,bkc->bk", features.cls, pairs))
        return StageProbabilities(prob1, prob2, cls, offset)

    def adapted_pairs(self, texts: CompoundTexts, adapted: Tensor) -> Tensor:
        """The normal feature and the adapted prototype of each image.

        Args:
            texts: The plain sentences' features.
            adapted: Adapted abnormal features `[B, K, C]`; the prototype is their mean before they are normalised, as in
                the published code.

        Returns:
            `[B, 2, C]`, unit norm.
        """
        prototype = adapted.mean(dim=1)
        return F.normalize(torch.stack([texts.normal.expand_as(prototype), prototype], dim=1), dim=-1)

    def _abnormal(self, similarity: Tensor) -> Tensor:
        """Abnormal probabilities `[...]` from similarities `[..., 2]` with the normal and the abnormal text."""
        return (similarity / self.temperature).softmax(dim=-1)[..., 1]

    # ---- scores ------------------------------------------------------------------------------------------------------

    def image_score(self, stages: StageProbabilities) -> Tensor:
        """Fuses the global score with the largest patch scores of both stages to `[B]`."""
        first, second = stages.prob1.amax(dim=1), stages.prob2.amax(dim=1)
        local = (2 * first + second) / 3 if self.score == "published" else (first + second) / 2
        return 0.5 * (stages.cls + local)

    def maps(self, stages: StageProbabilities, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Upsamples the abnormal probabilities of both stages to `[2, B, H, W]`."""
        return upsample(to_grid(torch.stack([stages.prob1, stages.prob2]), grid), size, align_corners=False)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        features = self.frozen_features(batch)
        stages = self.stages(features, self.texts())
        maps = self.maps(stages, features.grid, batch.size)
        return Prediction(self.image_score(stages), gaussian_smooth(maps.mean(dim=0), self.sigma))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The configured terms; `map1` is the plain map, `map2` the adapted one."""
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
