"""AnoVL: V-V attention in every block, sentences of the right domain, and a few gradient steps on each test image.

Deng, Zhang, Bao, Li, "Adapting Vision-Language Models for Unified Zero-shot Anomaly Localization", arXiv 2308.15939;
published code, state of 2023-09-07. Training-free: nothing is learned before the test, nothing is stored.

The defaults are those of the published code on MVTec AD, except that AdamW starts anew for each image. In the published code
its moments run on over the images of a category, so that maps depend on the order of the images
(`adaptation.optimizer_state: published`). The code's program for VisA is `tiling: auto` with `augment_views: false` and
`pixels.fit=short_side`; its own adapter there, a plain linear layer on joined maps, is left out: the adapter on sentences
serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.anovl.adapter import AdaptationOptions, AdapterStart, CategoryTexts, TextAdapter, adapt
from anomaly_vlm.methods.anovl.texts import TEXTURES, checked_table, sentences
from anomaly_vlm.methods.anovl.views import augmented_views, joined, squares_of
from anomaly_vlm.methods.base.frozen_tokens import FrozenTokens
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.shared.maps import to_grid, upsample
from anomaly_vlm.methods.shared.precision import in_float32
from anomaly_vlm.methods.shared.seeding import derived_generator
from anomaly_vlm.options import AtLeast, PositiveFloat, PositiveInt
from anomaly_vlm.texts import load_texts, table_key


class AnoVL(FrozenTokens):
    """Training-free: V-V patches against sentences, adapted to each image; the image score is a mean over 22 views.

    Maps and scores lie close to 0.5, as no temperature divides the similarities. The adaptation changes the map alone. Its
    first weights and its noise are drawn by (seed, index of the image).

    Args:
        backbone: Frozen towers. The paper has ViT-B/16+ of LAION-400M at 240 px, with an antialiased bicubic position grid.
        texts: Table of states and templates: the name of a shipped one, a JSON file, or the table itself.
        texture_categories: Categories with the templates on textures and surfaces; the others have those on objects.
        vv_blocks: Number of last vision blocks that run the V-V path; `all` for all of them.
        temperature: Divides the similarities in scores and maps, for display; the adaptation has none.
        smooth_kernel: Side of the mean filter on the grid of patches, odd; 1 for none.
        augment_views: Whether the image score is the mean over 22 views, or that of the image alone.
        adapt: Whether the map is adapted to each test image.
        adaptation: How.
        tiling: `off`: images must be square. `auto`: others are taken in squares of their shorter side, and the maps are
            averaged where these overlap (the published code on VisA, for images up to twice as wide as high). The squares of
            an image are adapted to together.
        base: See `AnomalyMethod`.

    Raises:
        UserError: The table lacks an entry, `smooth_kernel` is even, or the tower has fewer blocks than `vv_blocks`.
    """

    color_range = "per_image"

    def __init__(
        self,
        backbone: ClipBackbone,
        *,
        texts: str | Mapping[str, Any] = "anovl_prompts",
        texture_categories: Sequence[str] = TEXTURES,
        vv_blocks: Annotated[int, AtLeast(0)] | Literal["all"] = "all",
        temperature: PositiveFloat = 1.0,
        smooth_kernel: PositiveInt = 3,
        augment_views: bool = True,
        adapt: bool = True,
        adaptation: AdaptationOptions = AdaptationOptions(),  # noqa: B008 (frozen)
        tiling: Literal["off", "auto"] = "off",
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        self.table = checked_table(load_texts(texts))
        dual = backbone.num_layers if isinstance(vv_blocks, str) else vv_blocks
        if dual > backbone.num_layers:
            raise UserError(
                f"method.vv_blocks is {vv_blocks}: give all, or 0 to {backbone.num_layers} ({backbone.name})"
            )
        if smooth_kernel % 2 == 0:
            raise UserError(
                f"method.smooth_kernel is {smooth_kernel}: give an odd number of patches, 1 for no smoothing"
            )
        self.textures = {table_key(name) for name in texture_categories}
        self.vv_from, self.augment_views = backbone.num_layers - dual, augment_views
        self.temperature, self.smooth_kernel = temperature, smooth_kernel
        self.adapt, self.adaptation, self.tiling = adapt, adaptation, tiling == "auto"
        self.carry = self.predicts_in_order = adapt and adaptation.optimizer_state == "published"
        self._texts: dict[str, CategoryTexts] = {}
        self._carried: dict[str, tuple[TextAdapter, torch.optim.Optimizer]] = {}  # by category
        self._carried_prob: dict[tuple[int, str], Tensor] = {}  # an image that comes again keeps its map

    def display_name(self, name: str) -> str:
        """The method's name, with a note where maps depend on the order of the images."""
        return f"{name}, optimiser carried from image to image" if self.carry else name

    def setup(self, stage: str) -> None:
        if self.carry and self.trainer.world_size > 1:
            raise UserError(
                "method.adaptation.optimizer_state=published goes through the images in order, here are"
                f" {self.trainer.world_size} processes: set trainer.devices=1, or method.adaptation.optimizer_state=fresh"
            )

    def invalidate_caches(self) -> None:
        """Starts a new pass over the images, into which nothing is carried from the last one."""
        self._carried, self._carried_prob = {}, {}

    # ---- towers: frozen ----------------------------------------------------------------------------------------------

    def squares(self, size: tuple[int, int]) -> list[tuple[slice, slice]]:
        """The squares of an image of (height, width) that go through the tower.

        Raises:
            UserError: The tower does not take images of this shape.
        """
        patch = self.backbone.patch_size
        if size[0] != size[1] and not self.tiling:
            raise UserError(
                f"images of {size[0]}x{size[1]} pixels with method.tiling=off, which takes square ones: set"
                " method.tiling=auto or pixels.fit=square"
            )
        if min(size) % patch:
            raise UserError(
                f"images of {size[0]}x{size[1]} pixels: the shorter side must be a multiple of the patch size {patch}: set"
                " pixels.fit=short_side"
            )
        return squares_of(size)

    def cache_key(self) -> dict[str, Any]:
        return {"anovl": {"vv_from": self.vv_from, "views": self.augment_views, "tiling": self.tiling}}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Frozen tokens of the T squares of each image.

        The views of one square go through the tower together, on the ordinary path alone.

        Args:
            images: `[M, 3, H, W]`, normalised.

        Returns:
            `cls` `[M, T, V, C]` of all V views, unit norm; `patches` `[M, T, N, C]` of the V-V path, not normalised.
        """
        clip = self.backbone
        where = self.squares((images.shape[-2], images.shape[-1]))
        tiles = torch.stack([images[(..., *index)] for index in where], dim=1)
        squares = tiles.flatten(0, 1)  # [M T, 3, S, S]
        whole = clip.encode_image(squares, layers=[clip.num_layers], vv_from=self.vv_from)
        cls = whole.cls[:, None]
        if self.augment_views:
            views = [clip.encode_image(augmented_views(square[None])[0, 1:]).cls for square in squares]
            cls = torch.cat([cls, torch.stack(views)], dim=1)
        tokens = {"cls": F.normalize(cls.float(), dim=-1).to(cls.dtype), "patches": clip.project(whole.patches[0])}
        return {name: torch.unflatten(value, 0, tiles.shape[:2]) for name, value in tokens.items()}

    def sentences(self, category: str) -> list[list[str]]:
        """All normal and all anomalous sentences on a category, see `texts.sentences`."""
        return sentences(self.table, category, texture=table_key(category) in self.textures)

    @torch.no_grad()
    def texts(self, category: str) -> CategoryTexts:
        """Text features of a category. A prototype is the mean of features that are not normalised, as published."""
        if category not in self._texts:
            sides = self.sentences(category)
            every = [sentence for side in sides for sentence in side]
            raw = self.cached_text_features(sides, lambda: self.backbone.encode_sentences(every))
            raw = raw.to(self.device)
            means = torch.stack([side.mean(dim=0) for side in torch.split(raw, [len(side) for side in sides])])
            self._texts[category] = CategoryTexts(F.normalize(means, dim=-1), F.normalize(raw, dim=-1))
        return CategoryTexts(*(features.to(self.device) for features in self._texts[category]))

    # ---- scores ------------------------------------------------------------------------------------------------------

    def abnormal(self, features: Tensor, texts: CategoryTexts) -> Tensor:
        """Probability `[...]` of the anomalous state for features `[..., C]`."""
        return (F.normalize(features, dim=-1) @ texts.prototypes.T / self.temperature).softmax(dim=-1)[..., 1]

    def predict(self, batch: Batch) -> Prediction:
        tokens = self.frozen_tokens(batch)
        self.squares(batch.size)
        score = torch.empty(len(batch), device=self.device)
        maps = torch.empty(len(batch), *batch.size, device=self.device)
        with in_float32(score):  # probabilities close to 0.5 need their digits
            for category in dict.fromkeys(batch.category):
                rows = [i for i, name in enumerate(batch.category) if name == category]
                texts, patches = self.texts(category), tokens["patches"][rows].float()
                score[rows] = self.abnormal(tokens["cls"][rows].float(), texts).flatten(1).mean(dim=1)
                maps[rows] = self.maps(self.patch_prob(patches, texts, batch, rows), batch.size)
        return Prediction(score, maps)

    def maps(self, prob: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps `[B, H, W]` of the probabilities `[B, T, N]` of the patches of T squares: mean filter, upsampled, joined."""
        side, reach = min(size), self.smooth_kernel // 2
        grid = to_grid(prob, (side // self.backbone.patch_size,) * 2)
        wide = F.pad(grid, (reach,) * 4, mode="replicate")
        return joined(
            upsample(F.avg_pool2d(wide, self.smooth_kernel, stride=1), (side, side), align_corners=True), size
        )

    def patch_prob(self, patches: Tensor, texts: CategoryTexts, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Anomalous probability of patches.

        Args:
            patches: `[B, T, N, C]` of the images `rows`.
            texts: Of their category.
            batch: The batch.
            rows: Numbers of B images in it, all of one category.

        Returns:
            `[B, T, N]`.
        """
        if not self.adapt:
            return self.abnormal(patches, texts)
        indices = batch.index[rows].tolist()
        if not self.carry:
            return self.abnormal(self.adapted(patches, texts, indices), texts)
        probabilities = []
        for one, index, row in zip(patches, indices, rows, strict=True):
            key = (index, batch.path[row])
            if key not in self._carried_prob:
                adapted = self.adapted(one[None], texts, [index], batch.category[row])
                self._carried_prob[key] = self.abnormal(adapted, texts)[0]
            probabilities.append(self._carried_prob[key])
        return torch.stack(probabilities)

    def start(self, indices: Sequence[int], patches: int, texts: CategoryTexts) -> AdapterStart:
        """First weights, drawn as those of a linear layer, and noise of all steps, by (seed, index of the image) alone.

        Args:
            indices: Of the images in the data set.
            patches: Number of patches of each image.
            texts: Of their category.
        """
        keys, width = texts.keys.shape
        bound, drawn = width**-0.5, []
        for index in indices:
            random = derived_generator(self.seed, index)
            weight, bias = (random.uniform(-bound, bound, shape) for shape in ((keys, width), (keys,)))
            noise = random.normal(0.0, self.adaptation.noise_std, (self.adaptation.steps, patches, width))
            drawn.append([torch.from_numpy(array).to(self.device, torch.float32) for array in (weight, bias, noise)])
        weights, biases, noises = zip(*drawn, strict=True)
        return AdapterStart(torch.stack(weights), torch.stack(biases), torch.stack(noises, dim=1))

    def adapted(
        self, patches: Tensor, texts: CategoryTexts, indices: Sequence[int], carried: str | None = None
    ) -> Tensor:
        """Patches as the adapter gives them after its steps on each image.

        Args:
            patches: `[B, T, N, C]`.
            texts: Of the images' category.
            indices: Of the images in the data set.
            carried: Category whose optimiser continues, with B = 1; None for a new one for each image.

        Returns:
            `[B, T, N, C]`.
        """
        with torch.inference_mode(False), torch.enable_grad():  # an evaluation runs without gradient
            x = patches.flatten(1, 2).clone()
            texts = CategoryTexts(*(features.clone() for features in texts))
            adapter, optimizer, noise = self.begin(self.start(indices, x.shape[1], texts), texts, carried)
            adapt(adapter, optimizer, x, noise, texts)
            adapted: Tensor = adapter(x).detach().view_as(patches)
            return adapted

    def begin(
        self, start: AdapterStart, texts: CategoryTexts, carried: str | None = None
    ) -> tuple[TextAdapter, torch.optim.Optimizer, Tensor]:
        """Adapter and optimiser at the start, and the noise to come.

        Args:
            start: First weights and noise.
            texts: Of the images' category.
            carried: Category whose optimiser continues where there is one; None for a new one.
        """
        if carried is not None and carried in self._carried:
            adapter, optimizer = self._carried[carried]
            with torch.no_grad():
                adapter.weight.copy_(start.weight)
                adapter.bias.copy_(start.bias)
            return adapter, optimizer, start.noise
        adapter = TextAdapter(texts.keys, start)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=self.adaptation.lr)
        if carried is not None:
            self._carried[carried] = adapter, optimizer
        return adapter, optimizer, start.noise
