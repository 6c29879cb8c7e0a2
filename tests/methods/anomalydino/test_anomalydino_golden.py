"""AnomalyDINO against the published code, on given features, on the golden CLIP and on a tiny DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.backbone import load_vit
from anomaly_vlm.data.transforms import preprocessed
from anomaly_vlm.data.types import Preprocess
from anomaly_vlm.methods.anomalydino import AnomalyDINO
from anomaly_vlm.methods.shared.foreground import foreground
from anomaly_vlm.methods.shared.patch_memory import PatchMemory
from anomaly_vlm.methods.shared.turned import turn_reflected
from tests.support.golden import Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden
MASK = ("threshold", "kernel", "border", "coverage", "morphology", "sign")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(backbone: Any, o: dict[str, Any], **options: Any) -> AnomalyDINO:
    names = ("metric", "neighbours", "masking", "mask_references", "rotation", "angles", "sigma", "top", "quantile")
    mask = {name: o[f"mask_{name}"] for name in MASK}
    return AnomalyDINO(backbone, mask=mask, **{name: o[name] for name in names}, **options).eval()


def numbered(fixture: Fixture, prefix: str) -> list[str]:
    """The keys `prefix/0`, `prefix/1`, ... that the fixture holds."""
    numbers = [key.removeprefix(f"{prefix}/") for key in fixture.tensors if key.startswith(f"{prefix}/")]
    return [f"{prefix}/{number}" for number in sorted((n for n in numbers if n.isdigit()), key=int)]


def inputs_of(fixture: Fixture, group: str, name: str) -> list[Tensor]:
    """Numbered inputs of a group, or of the nearest group above that has them."""
    parts = group.split("/")
    for end in range(len(parts), 0, -1):
        if keys := numbered(fixture, f"{'/'.join(parts[:end])}/in/{name}"):
            return [fixture.input(key) for key in keys]
    return []


def native_of(fixture: Fixture, group: str) -> list[tuple[int, int]] | None:
    key = f"{group.partition('/')[0]}/in/native"
    return [(h, w) for h, w in fixture.input(key).tolist()] if fixture.has(key) else None


def check_image(fixture: Fixture, group: str, method: AnomalyDINO, i: int, distance: Tensor, size: Any) -> None:
    """Distances (after masking) and, where the fixture has it, the map of test image i; distances [rows, columns]."""
    fixture.check(f"{group}/out/distance/{i}", distance)
    if fixture.has(key := f"{group}/out/map/{i}"):
        fixture.check(key, method.maps(distance.flatten()[None], tuple(distance.shape), size)[0])


def check_features(fixture: Fixture, group: str, method: AnomalyDINO) -> None:
    """A group whose inputs are features: references against test images, or test images against each other."""
    test, references = inputs_of(fixture, group, "test"), inputs_of(fixture, group, "reference")
    memory = None
    if references:
        kept = []
        for j, reference in enumerate(references):
            views = reference if method.rotation else reference[:1]
            kept += [method.kept_references(view) for view in views]
            if fixture.has(key := f"{group}/mid/reference_mask/{j}"):
                masks = torch.stack([foreground(view, method.mask).mask for view in views])
                assert torch.equal(masks.to(torch.uint8), fixture.tensors[key])
                fixture.mark(key)
        memory = PatchMemory(torch.cat(kept), **method.memory_options())
    found = []
    native = native_of(fixture, group)
    flat = [tokens.flatten(0, 1) for tokens in test]
    for i, tokens in enumerate(test):
        grid = (tokens.shape[0], tokens.shape[1])
        raw = method.distances_together(flat, i) if memory is None else method.distances(flat[i], memory, grid)
        distance = method.masked(raw, tokens, "any").view(grid)
        found.append(distance.flatten())
        seen = foreground(tokens, method.mask)
        for name, value, atol in (("mid/component", seen.component, 1e-4), ("mid/mask_raw", seen.raw, 0.0)):
            if fixture.has(
                key := f"{group}/{name}/{i}"
            ):  # the published component comes from a randomised decomposition
                fixture.check(key, value, atol=atol)
        if fixture.has(key := f"{group}/out/mask/{i}"):
            fixture.check(key, seen.mask)
        check_image(fixture, group, method, i, distance, native[i] if native else None)
    scores = torch.cat([method.image_scores(distance[None]) for distance in found])
    fixture.check(f"{group}/out/score", scores)


def check_images(fixture: Fixture, group: str, method: AnomalyDINO, preprocess: Preprocess) -> None:
    """A group whose inputs are images: preprocessing, tower, memory, distances, maps."""

    def encode(image: Tensor) -> Tensor:
        pixels = preprocessed(image.numpy(), preprocess)
        grid = method.grid_of((pixels.shape[-2], pixels.shape[-1]))
        return method.encode_frozen(pixels)["patches"][0].unflatten(0, grid)

    views = [view for reference in inputs_of(fixture, group, "reference") for view in reference]
    memory = PatchMemory(torch.cat([method.kept_references(encode(view)) for view in views]), **method.memory_options())
    scores = []
    for i, image in enumerate(inputs_of(fixture, group, "test")):
        tokens = encode(image)
        fixture.check(f"{group}/mid/tokens/{i}", tokens)
        distance = method.distances(tokens.flatten(0, 1), memory, (tokens.shape[0], tokens.shape[1]))
        scores.append(method.image_scores(distance[None]))
        check_image(fixture, group, method, i, distance.view(tokens.shape[:2]), tuple(image.shape[:2]))
    fixture.check(f"{group}/out/score", torch.cat(scores))


def dino(fixture: Fixture, group: str, o: dict[str, Any], folder: Path) -> Any:
    """The tiny DINOv2, read from its published keys."""
    top, sizes = group.partition("/")[0], dict(o["tower"])
    registers = sizes.pop("registers")
    save_file(fixture.inputs(f"{top}/ckpt/"), folder / "dino.safetensors")
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    sizes |= {"reg_tokens": registers} if registers else {}
    rule = "dinov2" if o["pos_resize"] == "dinov2" else "timm"  # timm's own rule is `bicubic_antialias`
    patch = sizes["patch_size"]
    return load_vit(name, weights=str(folder / "dino.safetensors"), image_size=patch * 4, pos_resize=rule, sizes=sizes)


@pytest.mark.parametrize("path", fixture_paths("anomalydino"), ids=lambda path: path.stem)
@torch.no_grad()
def test_anomalydino_matches_the_published_code(path: Path, tmp_path: Path) -> None:
    fixture = Fixture(path)
    clip = golden_backbone(fixture.settings["backbone"], image_size=fixture.settings["image_size"])
    groups = [*fixture.settings["groups"]]
    for group in [*groups, *(name for name in ("prep", "rotate") if name not in groups)]:
        o = fixture.options(group)
        if group == "prep":
            check_preprocessing(fixture, o)
        elif group.startswith("rotate"):
            check_rotations(fixture, group, o)
        elif group.startswith(("clip", "dino")):
            if group.startswith("clip"):
                options = {"pos_resize": o["pos_resize"], "image_size": fixture.settings["image_size"]}
                tower: Any = golden_backbone(fixture.settings["backbone"], **options)
                mean, std = tower.mean, tower.std
            else:
                tower, mean, std = dino(fixture, group, o, tmp_path), tuple(o["mean"]), tuple(o["std"])
            preprocess = Preprocess(o["smaller_edge"], mean, std, fit="short_side")
            check_images(fixture, group, build(tower, o, layer=o["layer"], tap=o["tap"]), preprocess)
        else:
            batched = not inputs_of(fixture, group, "reference")
            check_features(fixture, group, build(clip, o, fit_on="test" if batched else "references"))
    fixture.finish()


def check_preprocessing(fixture: Fixture, o: dict[str, Any]) -> None:
    """Shorter edge, normalisation, cut to whole patches."""
    preprocess = Preprocess(o["smaller_edge"], *IMAGENET, fit="short_side")
    for i, key in enumerate(numbered(fixture, "prep/in/image")):
        pixels = preprocessed(fixture.input(key).numpy(), preprocess)[0]
        height, width = (side // o["patch_size"] * o["patch_size"] for side in pixels.shape[-2:])
        fixture.check(f"prep/out/pixels/{i}", pixels[:, :height, :width])


def check_rotations(fixture: Fixture, group: str, o: dict[str, Any]) -> None:
    for i, key in enumerate(numbered(fixture, "rotate/in/image")):
        image = fixture.input(key).numpy()
        turned = np.stack([turn_reflected(image, angle, warp=o["warp"]) for angle in o["angles"]])
        tolerance = 1.0 if o["warp"] == "exact" else 0.0  # grey levels, as the fixture's README says
        fixture.check(f"{group}/out/{i}", torch.from_numpy(turned).float(), rtol=0.0, atol=tolerance)
