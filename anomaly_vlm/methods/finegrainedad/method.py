"""FineGrainedAD: PromptAD with captions of a normal image on three levels, and prompts aligned with the references' regions.

Fan et al., "FineGrainedAD", Pattern Recognition 178 (2026) 113316, arXiv 2510.26464. In the paper's names: MFSC are the
captions, MLLP the prompts made of them, MLSA the regions and the alignment with them. The defaults are the published code's.
Where its quirks stand beside a sound reading: `match`, `region.pool`, `region.mask`, `region.density_k`, `memory_tap`,
`temperature`, and in the loss config `triplet.dim`; it keeps the epoch with the best result on the *test* set
(`selection=best_test`). Its hand-made regions of the category pcb2 are left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import References
from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.methods.finegrainedad.captions import Captions, Texts
from anomaly_vlm.methods.finegrainedad.levels import (
    LevelLearner,
    QueryFormer,
)
from anomaly_vlm.methods.finegrainedad.regions import RegionOptions, find_regions, pool_weights
from anomaly_vlm.methods.promptad.category import Category
from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod
from anomaly_vlm.methods.promptad.prompt_learner import PromptLearner, RawTexts, TextFamily, class_phrases
from anomaly_vlm.methods.shared.seeding import derived_generator


class FineGrainedAD(VVMemoryMethod):
    """Prompts of the image, its components and its background, with contexts that all of them share.

    Learned: V, A and eight weights of each category and task (5,128 numbers for `seg`, 10,248 for `cls` on ViT-B/16+).

    Args:
        backbone: frozen towers.
        captions: table of captions (`mfsc_captions`). A category that it lacks gets a template's, with one notice.
        prompts: PromptAD's table, for class words and generic states.
        mllp: prompts from the captions by replacement and concatenation; False: PromptAD's for the image (ablation).
        mlsa: prompts of the components, learned on their regions; False: those of the image alone (ablation).
        region: options of `RegionOptions`.
        match: which of the texts a feature is compared with, the nearest by cosine: of `qformer`, a random linear map of
            both text features (code; see `QueryFormer`), or of the `normal` text features.
        qformer_seed: of that map.
        score: image score of class feature and memory, `harmonic` fusion or `mean` (the published training program logs the
            better one for each category).
        options: see `VVMemoryMethod`.

    Reference: arXiv 2510.26464; published code, its one public version.
    """

    loss_terms: ClassVar[dict[str, frozenset[str]]] = {
        "v2t": frozenset({"contrastive"}),
        "triplet": frozenset({"margin"}),
        "match": frozenset({"alignment"}),
        "reg": frozenset({"levels"}),
    }

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        captions: Mapping[str, Any],
        prompts: Mapping[str, Any],
        mllp: bool = True,
        mlsa: bool = True,
        region: Mapping[str, Any] | None = None,
        match: Literal["qformer", "normal"] = "qformer",
        qformer_seed: int = 111,
        score: Literal["harmonic", "mean"] = "harmonic",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if match not in ("qformer", "normal"):
            raise unknown_choice("method.match", str(match), ["qformer", "normal"])
        if score not in ("harmonic", "mean"):
            raise unknown_choice("method.score", str(score), ["harmonic", "mean"])
        self.region, self.mllp, self.mlsa, self.fusion = RegionOptions(**(region or {})), mllp, mlsa, score
        self.prompts = prompts
        self.described = Captions(captions, prompts, seed=self.seed)
        self.query_former = QueryFormer(backbone.embed_dim, qformer_seed) if match == "qformer" else None

    # ---- prompts: MLLP -----------------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> LevelLearner:
        texts, sizes = self.described.texts(category), self.sizes[task]
        plain = Texts(*class_phrases(self.prompts, category))
        said = {"image": texts.image, **texts.groups} if self.mllp else {"image": plain}
        parts = {f"entity{i}": entity for i, entity in enumerate(texts.entities)} | {"background": texts.background}
        parts = parts if self.mlsa else {}
        return LevelLearner(
            {name: TextFamily(self.backbone, *each, sizes) for name, each in {**said, **parts}.items()},
            list(parts),
            sizes,
            self.generator(category, task),
            width=self.backbone.text_width,
            embed_dim=self.backbone.embed_dim,
        )

    def family_names(self, learner: LevelLearner) -> list[str]:
        """The published order of text features: the entities, the image, the background."""
        return [*learner.parts[:-1], "image", *learner.parts[-1:]]

    def raw_texts(self, learner: PromptLearner) -> list[RawTexts]:
        """Features of all families, as `family_names` orders them."""
        levels = cast(LevelLearner, learner)
        parts = levels.raw_parts(self.backbone)
        return [*parts[:-1], levels.raw_image(self.backbone), *parts[-1:]]

    def encode_learned(self, learner: PromptLearner) -> Tensor:
        return torch.stack([raw.pair() for raw in self.raw_texts(learner)])

    # ---- regions: MLSA -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, category: Category, references: References) -> None:
        """Regions of the references and the entities' weights on them, by the prompts as they start."""
        learner = category.by_task.get("seg")
        if not self.mlsa or not isinstance(learner, LevelLearner) or not learner.learns:
            return
        side, factor = references.batch.size[0], self.region.side_factor
        fine = self.fine_features(references.at(side * factor).to(self.device), side)
        seed = self.seed if self.region.seed is None else self.region.seed
        draws = derived_generator(seed, zlib.crc32(category.name.encode())).random(
            (2, *fine.shape[:2]), dtype="float32"
        )
        noise = torch.from_numpy(draws).to(fine.device)
        found = find_regions(fine, self.entity_features(learner), self.region, (noise[0], noise[1]))
        learner.rescale = self.pooled(found.fine, side)

    def fine_features(self, images: Tensor, side: int) -> Tensor:
        """V-V patch features [k, n, C], unit norm, row by row over images [k, 3, S, S] that are cut into tiles of `side`."""
        clip, count = self.backbone, images.shape[-1] // side
        tiles = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)  # [k, f, f, 3, side, side]
        features = []
        for shot in tiles.flatten(1, 2):  # tiles of one image
            tokens = clip.encode_image(shot, layers=[clip.num_layers], vv_from=0)
            features.append(F.normalize(clip.project(tokens.patches[0]).float(), dim=-1))
        grid = side // clip.patch_size
        blocks = torch.stack(features).unflatten(2, (grid, grid)).unflatten(1, (count, count))  # [k, f, f, g, g, C]
        return blocks.transpose(2, 3).flatten(1, 4)

    def entity_features(self, learner: LevelLearner) -> Tensor:
        """Raw normal features [J, C] of the entities, the background last."""
        return torch.stack([raw.normal.mean(dim=0) for raw in learner.raw_parts(self.backbone)])

    def pooled(self, fine: Tensor, side: int) -> Tensor:
        """Fine weights [J, k, n] as weights [J, k, N] of an input of `side` pixels."""
        grid = side // self.backbone.patch_size
        return pool_weights(fine, (grid, grid), self.region.side_factor, self.region.pool)

    # ---- losses ------------------------------------------------------------------------------------------------------

    def family_losses(
        self, task: str, learner: LevelLearner, features: Tensor, rows: list[int]
    ) -> dict[str, list[Tensor]]:
        """Values of each term: for the image, then for the entities, then for the background (`match` has none for it)."""
        seen = {"image": features, **self.seen_by_parts(task, learner, features, rows)}
        texts = dict(zip(self.family_names(learner), self.raw_texts(learner), strict=True))
        values: dict[str, list[Tensor]] = {name: [] for name in self.terms}
        for name, x in seen.items():
            raw = texts[name]
            if "v2t" in values:
                values["v2t"].append(self.terms["v2t"](self.factor * x @ raw.candidates().T))
            if "triplet" in values:
                values["triplet"].append(self.terms["triplet"](x, *raw.pair()))
            if "match" in values and name != "background":
                values["match"].append(self.terms["match"](raw.manual, raw.learned))
        if "reg" in values and task == "seg" and learner.parts:
            entities = torch.stack([texts[name].learned for name in learner.parts[:-1]])
            values["reg"].append(self.terms["reg"](texts["image"].learned, entities, texts["background"].normal))
        return values

    def seen_by_parts(self, task: str, learner: LevelLearner, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        """What each part's texts are compared with: patches [k, N, C] weighted by its region, or class features [k, C]."""
        if task == "cls":
            return dict.fromkeys(learner.parts, features)
        if learner.parts and learner.rescale is None:
            raise UserError("the regions of the references are not known: give the references before training (shots)")
        if learner.rescale is None:
            return {}
        weighted = features * learner.rescale[:, rows, :, None]  # [J, k, N, C]
        return dict(zip(learner.parts, weighted, strict=True))

    def task_losses(self, task: str, learner: PromptLearner, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        values = self.family_losses(task, cast(LevelLearner, learner), features, rows)
        return {name: torch.stack(each).sum() for name, each in values.items() if each}

    # ---- scores ------------------------------------------------------------------------------------------------------

    def intrinsic(self, texts: Tensor) -> Tensor:
        """What features are compared with to choose a family [U, C], of text features [U, 2, C]."""
        return texts[:, 0] if self.query_former is None else self.query_former(texts[:, 0], texts[:, 1])

    def nearest_family(self, features: Tensor, texts: Tensor) -> Tensor:
        """Index [...] of the family that suits each of the unit features [..., C] best."""
        return (features @ F.normalize(self.intrinsic(texts), dim=-1).T).argmax(dim=-1)

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        logits = self.factor * torch.einsum("...c,utc->...ut", features, texts)
        chosen = self.nearest_family(features, texts)[..., None, None].expand(*features.shape[:-1], 1, 2)
        return logits.gather(-2, chosen)[..., 0, :].softmax(dim=-1)[..., 1]

    def image_score(self, textual: Tensor, peak: Tensor) -> Tensor:
        return (textual + peak) / 2 if self.fusion == "mean" else super().image_score(textual, peak)
