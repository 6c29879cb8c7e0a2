"""AnomalyDINO: a frozen vision tower, a few normal images with their rotations, and the nearest neighbour of every patch.

Damm, Laszkiewicz, Lederer, Fischer, "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025,
arXiv 2405.14529; code github.com/dammsi/AnomalyDINO. The defaults use no knowledge of the category; the published programs
choose masking and rotation by tables that were made for the categories of the test sets (`masking="published"`,
`rotation="informed"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, Tap, ViTBackbone
from anomaly_vlm.data.types import Batch, References
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.anomalydino.batched import batched_distance
from anomaly_vlm.methods.base.prediction import Prediction
from anomaly_vlm.methods.base.transductive import Transductive, image_name
from anomaly_vlm.methods.shared.category_memory import Encoded, MemoryMethod
from anomaly_vlm.methods.shared.foreground import MaskOptions, foreground
from anomaly_vlm.methods.shared.layers import tapped_layers
from anomaly_vlm.methods.shared.maps import gaussian_smooth, to_grid, top_share_mean, upsample
from anomaly_vlm.methods.shared.patch_memory import CoresetShare, Metric, PatchMemory
from anomaly_vlm.methods.shared.turned import Warp, turn_reflected
from anomaly_vlm.options import AtLeast, PositiveInt, Range
from anomaly_vlm.texts import load_texts, table_key

ANGLES = (0, 45, 90, 135, 180, 225, 270, 315)
Share = Annotated[float, Range(low=0, high=1, open_low=True)]


class AnomalyDINO(MemoryMethod, Transductive):
    """Scores a patch by its distance to the nearest patch of the references. Nothing is learned.

    Args:
        backbone: DINOv2 ViT-S/14 as in the paper, or any other ViT, also the image tower of a CLIP.
        layer: 1-based block whose patches are compared; `last`; 0 for the patch embedding.
        tap: `norm`: after the tower's final norm. `raw`: the block's output. `projected`: after a CLIP's projection, too.
        rotation: Whether references are compared with in all `angles`. `informed`: only those of the categories for which
            the published table says so.
        angles: Degrees; the first one alone is used without rotation.
        warp: How pixels are turned, see `turn_reflected`; `quantised` gives the published pixels.
        masking: Whether patches outside the foreground of a test image have distance 0. `published`: in the categories for
            which the published table says so.
        mask: How the foreground is found; the threshold has the units of the tower's tokens. Published: morphology `column`.
        mask_references: Whether patches outside the foreground of a reference stay out of the memory.
        metric: Distance of two patches, `cosine` (1 - cos) or `euclidean`.
        neighbours: Number of nearest patches that are averaged.
        aligned: Radius in patches within which a patch looks for its neighbours, for parts that always lie the same way
            (then without rotation); None: anywhere.
        coreset: Share of the reference patches that is kept, see `PatchMemory`; 1 for all.
        sigma: Standard deviation in pixels of the Gaussian that smooths the map; 0 for none.
        top: The image score is the mean of this share of the largest patch distances, at least of one.
        fit_on: `references`, or `test`: the published batched mode, which compares each test image of a category with all
            others and needs no references. It is transductive.
        quantile: With `fit_on="test"`, share of the other images' patches that count as neighbours.
        base: See `MemoryMethod`.

    Raises:
        UserError: The tower does not have the block, or options contradict each other.
    """

    backbone_types = (ViTBackbone, ClipBackbone)

    def __init__(
        self,
        backbone: Any,
        *,
        layer: Annotated[int, AtLeast(0)] | Literal["last"] = "last",
        tap: Tap = "norm",
        rotation: bool | Literal["informed"] = True,
        angles: Sequence[float] = ANGLES,
        warp: Warp = "exact",
        masking: bool | Literal["published"] = False,
        mask: MaskOptions = MaskOptions(),  # noqa: B008 (frozen)
        mask_references: bool = False,
        metric: Metric = "cosine",
        neighbours: PositiveInt = 1,
        aligned: Annotated[int, AtLeast(0)] | None = None,
        coreset: CoresetShare = 1.0,
        sigma: Annotated[float, AtLeast(0)] = 4.0,
        top: Share = 0.01,
        fit_on: Literal["references", "test"] = "references",
        quantile: Share = 0.001,
        **base: Any,
    ) -> None:
        super().__init__(backbone, **base)
        if not angles:
            raise UserError(f"method.angles is empty: give angles in degrees such as {list(ANGLES)}")
        if aligned is not None and (rotation or mask_references or coreset < 1 or metric != "cosine"):
            raise UserError(
                "method.aligned compares patches at their own positions: set rotation=false, mask_references=false,"
                " coreset=1 and metric=cosine"
            )
        (self.layer,) = tapped_layers(backbone, "last" if layer == "last" else [layer], option="layer", embedding=True)
        self.tap, self.rotation, self.angles, self.warp = tap, rotation, tuple(angles), warp
        self.masking, self.mask, self.mask_references = masking, mask, mask_references
        self.metric, self.neighbours, self.aligned, self.coreset = metric, neighbours, aligned, coreset
        self.sigma, self.top, self.fit_on, self.quantile = sigma, top, fit_on, quantile
        self.reference_support = "required" if fit_on == "references" else "none"
        self._together: dict[str, Tensor] = {}  # image -> distances [N], where fit_on is `test`

    @property
    def is_transductive(self) -> bool:
        return self.fit_on == "test"

    def display_name(self, name: str) -> str:
        switched = self.masking == "published" or self.rotation == "informed"
        return super().display_name(name) + (" (per-category switches)" if switched else "")

    def switched(self, switch: bool | str, table: Mapping[str, Sequence[str]], category: str) -> bool:
        """Whether a switch is on for a category: as it stands, or where it names a published table, by that table."""
        return switch if isinstance(switch, bool) else table_key(category) in table["on"]

    # ---- the tower: frozen -------------------------------------------------------------------------------------------

    def cache_key(self) -> dict[str, Any]:
        return {"anomalydino": self.layer, "tap": self.tap}

    def encode_frozen(self, images: Tensor) -> dict[str, Tensor]:
        """Encodes images `[M, 3, H, W]`, cut at the right and at the bottom to whole patches, to `patches` `[M, N, D]`."""
        rows, columns = self.grid_of((images.shape[-2], images.shape[-1]))
        patch = self.backbone.patch_size
        images = images[..., : rows * patch, : columns * patch]
        return {"patches": self.backbone.encode_patches(images, layers=[self.layer], tap=self.tap).patches[0]}

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of whole patches in an image of this height and width.

        Raises:
            UserError: There are none.
        """
        rows, columns = (side // self.backbone.patch_size for side in size)
        if not rows or not columns:
            raise UserError(
                f"an image of {size[0]} x {size[1]} pixels has no whole patch of {self.backbone.patch_size} pixels: give a"
                " larger image_size"
            )
        return rows, columns

    # ---- the memory --------------------------------------------------------------------------------------------------

    def memory_token_names(self) -> list[str]:
        return ["patches"]

    def encode_references(self, references: References) -> dict[str, Encoded]:
        rotated = self.switched(self.rotation, load_texts("anomalydino_switches")["rotation"], references.category)
        if not rotated and not self.mask_references and self.angles[0] == 0:
            return {"patches": [list(self.frozen_tokens(references.batch)["patches"])]}
        views = []
        for angle in self.angles if rotated else self.angles[:1]:
            turned = references.changed(partial(self._turned, angle))
            views.append([self.reference_patches(image.to(self.device)) for image in turned])
        return {"patches": views}

    def _set_memories(self, category: str, tokens: Mapping[str, Tensor], **changes: Any) -> None:
        if not len(tokens["patches"]):
            raise UserError(
                f"the masks of all reference images of category '{category}' are empty: lower method.mask.threshold, or set"
                " mask_references=false"
            )
        super()._set_memories(category, tokens, **changes)

    def _turned(self, angle: float, pixels: Any, number: int) -> Any:
        return turn_reflected(pixels, angle, warp=self.warp)

    def reference_patches(self, image: Tensor) -> Tensor:
        """Patches `[n, D]` of one reference image `[1, 3, H, W]` that enter the memory."""
        tokens = self.encode_frozen(image)["patches"][0].float()
        return self.kept_references(to_tokens(tokens, self.grid_of((image.shape[-2], image.shape[-1]))))

    def kept_references(self, tokens: Tensor) -> Tensor:
        """Of patches `[rows, columns, D]` of a reference image those that enter the memory, `[n, D]`."""
        return tokens[foreground(tokens, self.mask).mask] if self.mask_references else tokens.flatten(0, 1)

    def memory_options(self) -> dict[str, Any]:
        options = {"coreset": self.coreset, "neighbours": self.neighbours, "metric": self.metric, "seed": self.seed}
        return {**super().memory_options(), **options}

    # ---- scores ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        grid = self.grid_of(batch.size)
        patches = self.frozen_tokens(batch)["patches"].float()
        distances = torch.stack([self.image_distances(batch, i, patches[i], grid) for i in range(len(batch))])
        return Prediction(self.image_scores(distances), self.maps(distances, grid, batch.size))

    def image_distances(self, batch: Batch, row: int, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Distances `[N]` of the patches `[N, D]` of one image of a batch."""
        category = batch.category[row]
        if self.fit_on == "test":
            if (name := image_name(batch, row)) not in self._together:
                raise self.not_seen(batch, row)
            distances = self._together[name].to(patches.device)
        else:
            memory = self.memory(category)
            if memory is None:
                raise UserError(
                    f"{type(self).__name__} compares with normal images and has none: give it some (shots=1,"
                    " fit_references)"
                )
            distances = self.distances(patches, memory["patches"], grid)
        return self.masked(distances, to_tokens(patches, grid), category)

    def distances(self, patches: Tensor, memory: PatchMemory, grid: tuple[int, int]) -> Tensor:
        """Distances `[N]` of patches `[N, D]` to a memory: `1 - cos`, or Euclidean."""
        if self.aligned is not None:
            return 2 * memory.aligned(patches[None], grid, radius=self.aligned)[0]
        found: Tensor = memory(patches)
        return 2 * found if self.metric == "cosine" else found

    def masked(self, distances: Tensor, tokens: Tensor, category: str) -> Tensor:
        """Distances `[N]` with 0 outside the foreground of the image's tokens `[rows, columns, D]`, where masking is on."""
        if self.masking is False or not self.switched(
            self.masking, load_texts("anomalydino_switches")["masking"], category
        ):
            return distances
        kept: Tensor = distances * foreground(tokens, self.mask).mask.flatten()
        return kept

    def image_scores(self, distances: Tensor) -> Tensor:
        """Image scores `[B]` of patch distances `[B, N]`, zeros of masked patches included."""
        return top_share_mean(distances, self.top)

    def maps(self, distances: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Maps `[B, H, W]` of patch distances `[B, N]`."""
        return gaussian_smooth(upsample(to_grid(distances, grid), size, align_corners=False), self.sigma)

    # ---- batched: every test image against all others ----------------------------------------------------------------

    def check_test_set(self, counts: Mapping[str, int]) -> None:
        for category, count in counts.items():
            if count < 2:
                raise UserError(
                    f"method.fit_on=test compares the images of a category with each other: '{category}' has {count}, give"
                    " at least 2, or references (method.fit_on=references)"
                )

    def fit_test_category(self, category: str, images: Sequence[Batch]) -> None:
        tokens = {image_name(batch): self.frozen_tokens(batch)["patches"][0] for batch in images}
        for i, name in enumerate(tokens):
            self._together[name] = self.distances_together(list(tokens.values()), i)

    def distances_together(self, tokens: Sequence[Tensor], row: int) -> Tensor:
        """Distances `[N]` of image `row` to all other images, of which `tokens` has the patches `[N, D]`."""
        return batched_distance(tokens, row, quantile=self.quantile, memory_mb=self.memory_mb)


def to_tokens(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches `[N, D]` as `[rows, columns, D]`."""
    return torch.unflatten(patches, 0, grid)
