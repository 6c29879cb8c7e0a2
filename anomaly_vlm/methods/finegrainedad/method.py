"""FineGrainedAD: PromptAD with captions of a normal image on three levels, and prompts aligned with the references' regions.

Fan et al., "FineGrainedAD", Pattern Recognition 178 (2026) 113316, arXiv 2510.26464; published code, its one public version.
In the paper's names: MFSC are the captions, MLLP the prompts made of them, MLSA the regions and the alignment with them. The
defaults are the published code's. Its quirks have a sound reading beside them: `match`, `region.pool`, `region.mask`,
`region.density_k`, `memory.tap`, `temperature`, and `triplet.dim` of the loss configuration. It keeps the epoch with the
best result on the *test* set (`selection=best_test`). Its hand-made regions of the category pcb2 are left out.
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
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.finegrainedad.captions import Captions, FamilyTexts
from anomaly_vlm.methods.finegrainedad.levels import LevelPrompts, QueryFormer
from anomaly_vlm.methods.finegrainedad.regions import RegionOptions, find_regions, pool_weights
from anomaly_vlm.methods.promptad.category import Category
from anomaly_vlm.methods.promptad.few_shot import VVMemoryMethod
from anomaly_vlm.methods.promptad.prompt_learner import CategoryPrompts, FamilyFeatures, TextFamily, class_phrases
from anomaly_vlm.methods.shared.precision import product, summed_product
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.texts import load_texts


class FineGrainedAD(VVMemoryMethod):
    """Prompts of the image, its components and its background, with contexts that all of them share.

    V, A and eight weights of each category and task are learned: 5,128 numbers for `seg` and 10,248 for `cls` on ViT-B/16+.

    Args:
        backbone: Frozen towers.
        captions: Table of captions: the name of a shipped one, a JSON file, or the table itself. A category that it lacks
            has those of a template, with one notice.
        prompts: PromptAD's table likewise, for class words and generic states.
        mllp: Whether prompts come from the captions by replacement and concatenation; False for PromptAD's (ablation).
        mlsa: Whether the components have prompts, learned on their regions; False for the image alone (ablation).
        region: How regions are found and weighted.
        match: Which text features a feature is compared with to choose the nearest family. `qformer`: a random linear map of
            both text features, as published, see `QueryFormer`. `normal`: the normal ones.
        qformer_seed: Seed of that map.
        score: Image score of class feature and memory: their `harmonic` fusion, or their `mean`. The published training
            program logs the better one for each category.
        options: See `VVMemoryMethod`.
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
        captions: str | Mapping[str, Any] = "mfsc_captions",
        prompts: str | Mapping[str, Any] = "promptad_prompts",
        mllp: bool = True,
        mlsa: bool = True,
        region: RegionOptions = RegionOptions(),  # noqa: B008 (frozen)
        match: Literal["qformer", "normal"] = "qformer",
        qformer_seed: int = 111,
        score: Literal["harmonic", "mean"] = "harmonic",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        self.region, self.mllp, self.mlsa, self.fusion = region, mllp, mlsa, score
        self.prompts = load_texts(prompts)
        self.described = Captions(load_texts(captions), self.prompts, seed=self.seed)
        self.query_former = QueryFormer(backbone.embed_dim, qformer_seed) if match == "qformer" else None

    # ---- prompts: MLLP -----------------------------------------------------------------------------------------------

    def new_learner(self, category: str, task: str) -> LevelPrompts:
        texts, sizes = self.described.texts(category), self.sizes[task]
        whole = {"image": FamilyTexts(*class_phrases(self.prompts, category))}
        if self.mllp:
            whole = {"image": texts.image, **texts.groups}
        components: dict[str, FamilyTexts] = {}
        if self.mlsa:
            components = {f"entity{i}": entity for i, entity in enumerate(texts.entities)}
            components["background"] = texts.background
        return LevelPrompts(
            {name: TextFamily(self.backbone, *each, sizes) for name, each in {**whole, **components}.items()},
            list(components),
            sizes,
            self.generator(category, task),
            width=self.backbone.text_width,
            embed_dim=self.backbone.embed_dim,
        )

    def family_names(self, learner: LevelPrompts) -> list[str]:
        """The published order of text features: the entities, the image, the background."""
        return [*learner.components[:-1], "image", *learner.components[-1:]]

    def sentence_features(self, learner: CategoryPrompts) -> list[FamilyFeatures]:
        """Features of all families, in the order of `family_names`."""
        levels = cast(LevelPrompts, learner)
        components = levels.component_features(self.backbone)
        return [*components[:-1], levels.image_features(self.backbone), *components[-1:]]

    def encode_learned(self, learner: CategoryPrompts) -> Tensor:
        return torch.stack([family.pair() for family in self.sentence_features(learner)])

    # ---- regions: MLSA -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, category: Category, references: References) -> None:
        """Finds the regions of the references and the entities' weights on them, by the prompts before training."""
        learner = category.by_task.get("seg")
        if not self.mlsa or not isinstance(learner, LevelPrompts) or not learner.learns:
            return
        side, factor = references.batch.size[0], self.region.side_factor
        fine = self.fine_features(references.at_size(side * factor).to(self.device), side)
        seed = self.seed if self.region.seed is None else self.region.seed
        draws = derived_generator(seed, zlib.crc32(category.name.encode())).random(
            (2, *fine.shape[:2]), dtype="float32"
        )
        noise = torch.from_numpy(draws).to(fine.device)
        regions = find_regions(fine, self.entity_features(learner), self.region, (noise[0], noise[1]))
        learner.rescale = self.pooled(regions.fine, side)

    def fine_features(self, images: Tensor, side: int) -> Tensor:
        """V-V patch features of large images, which go through the tower in tiles.

        Args:
            images: `[k, 3, S, S]`, normalised.
            side: Side of the tiles in pixels.

        Returns:
            `[k, n, C]`, unit norm, row by row over the image.
        """
        clip, count = self.backbone, images.shape[-1] // side
        tiles = images.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)  # [k, f, f, 3, side, side]
        features = []
        for shot in tiles.flatten(1, 2):  # tiles of one image
            tokens = clip.encode_image(shot, layers=[clip.num_layers], vv_from=0)
            features.append(F.normalize(clip.project(tokens.patches[0]).float(), dim=-1))
        grid = side // clip.patch_size
        blocks = torch.stack(features).view(len(images), count, count, grid, grid, -1)  # [k, f, f, g, g, C]
        return blocks.transpose(2, 3).flatten(1, 4)

    def entity_features(self, learner: LevelPrompts) -> Tensor:
        """Normal text features `[J, C]` of the entities, the background last, not normalised."""
        return torch.stack([family.normal.mean(dim=0) for family in learner.component_features(self.backbone)])

    def pooled(self, fine: Tensor, side: int) -> Tensor:
        """Pools fine weights `[J, k, n]` to weights `[J, k, N]` of an input of `side` pixels."""
        grid = side // self.backbone.patch_size
        return pool_weights(fine, (grid, grid), self.region.side_factor, self.region.pool)

    # ---- losses ------------------------------------------------------------------------------------------------------

    def family_losses(
        self, task: str, learner: LevelPrompts, features: Tensor, rows: list[int]
    ) -> dict[str, list[Tensor]]:
        """Values of each term for the image, the entities and the background, which has no `match`; see `task_losses`."""
        visual = {"image": features, **self.component_patches(task, learner, features, rows)}
        texts = dict(zip(self.family_names(learner), self.sentence_features(learner), strict=True))
        values: dict[str, list[Tensor]] = {name: [] for name in self.terms}
        for name, x in visual.items():
            family = texts[name]
            if "v2t" in values:
                values["v2t"].append(self.terms["v2t"](product(self.factor * x, family.candidates().T)))
            if "triplet" in values:
                values["triplet"].append(self.terms["triplet"](x, *family.pair()))
            if "match" in values and name != "background":
                values["match"].append(self.terms["match"](family.manual, family.learned))
        if "reg" in values and task == "seg" and learner.components:
            entities = torch.stack([texts[name].learned for name in learner.components[:-1]])
            values["reg"].append(self.terms["reg"](texts["image"].learned, entities, texts["background"].normal))
        return values

    def component_patches(
        self, task: str, learner: LevelPrompts, features: Tensor, rows: list[int]
    ) -> dict[str, Tensor]:
        """Features that each component's texts are compared with.

        Args:
            task: `seg` or `cls`.
            learner: Prompts of the category.
            features: See `task_losses`.
            rows: See `task_losses`.

        Returns:
            By component: patches `[k, N, C]` weighted by its region for `seg`, `[k, C]` of the images for `cls`.

        Raises:
            UserError: The regions of the references are not there yet.
        """
        if task == "cls":
            return dict.fromkeys(learner.components, features)
        if learner.components and learner.rescale is None:
            raise UserError("the regions of the references are not known: give the references before training (shots)")
        if learner.rescale is None:
            return {}
        weighted = features * learner.rescale[:, rows, :, None]  # [J, k, N, C]
        return dict(zip(learner.components, weighted, strict=True))

    def task_losses(self, task: str, learner: CategoryPrompts, features: Tensor, rows: list[int]) -> dict[str, Tensor]:
        values = self.family_losses(task, cast(LevelPrompts, learner), features, rows)
        return {name: torch.stack(each).sum() for name, each in values.items() if each}

    # ---- scores ------------------------------------------------------------------------------------------------------

    def intrinsic(self, texts: Tensor) -> Tensor:
        """Vectors `[U, C]` that features are compared with to choose a family, by text features `[U, 2, C]`."""
        if self.query_former is None:
            return texts[:, 0]
        mapped: Tensor = self.query_former(texts[:, 0], texts[:, 1])
        return mapped

    def nearest_family(self, features: Tensor, texts: Tensor) -> Tensor:
        """Number `[...]` of the family that is nearest to each unit feature `[..., C]`, by text features `[U, 2, C]`."""
        return product(features, F.normalize(self.intrinsic(texts), dim=-1).T).argmax(dim=-1)

    def abnormal_prob(self, features: Tensor, texts: Tensor) -> Tensor:
        logits = self.factor * summed_product("...c,utc->...ut", features, texts)
        chosen = self.nearest_family(features, texts)[..., None, None].expand(*features.shape[:-1], 1, 2)
        return logits.gather(-2, chosen)[..., 0, :].softmax(dim=-1)[..., 1]

    def image_score(self, textual: Tensor, peak: Tensor) -> Tensor:
        return (textual + peak) / 2 if self.fusion == "mean" else super().image_score(textual, peak)
