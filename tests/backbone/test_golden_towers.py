"""The towers and their hooks against plain open_clip and the published implementations' numbers."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone, Prompts, read_weights, run_blocks
from anomaly_vlm.backbone.weight_files import fill_weights
from tests.support.golden import ATOL, ROOT, RTOL, Fixture, fixture_paths, golden_backbone

pytestmark = pytest.mark.golden


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=RTOL, atol=ATOL, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("path", fixture_paths("backbone"), ids=lambda path: path.stem)
def test_towers_equal_plain_open_clip(path: Path) -> None:
    config = json.loads(path.read_text())
    plain = open_clip.CLIP(**config).eval()
    fill_weights(plain, read_weights(path.with_suffix(".safetensors")), path.name)
    ours = golden_backbone(path.stem)
    assert ours.activation == ("quick_gelu" if config["quick_gelu"] else "gelu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, ours.image_size, ours.image_size, generator=generator)
    texts = ["a photo of a flawless metal nut.", "damaged"]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(images).cls, plain.encode_image(images), rtol=0, atol=1e-5)
        whole = open_clip.tokenize(texts, context_length=ours.context_length)
        torch.testing.assert_close(ours.encode_text(ours.tokenize(texts)), plain.encode_text(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", fixture_paths("winclip"), ids=lambda path: path.stem)
def test_windows(path: Path) -> None:
    """WinCLIP's windows: short sequences of kept tokens."""
    fixture = Fixture(path)
    t = fixture.tensors
    clip: ClipBackbone = golden_backbone(fixture.settings["backbone"], image_size=fixture.settings["image_size"])
    with torch.no_grad():
        tokens = clip.encode_image(t["in/images"], layers=[clip.num_layers])
        close(tokens.cls, t["out/image_embedding"], "image embedding")
        close(clip.visual.ln_post(tokens.patches[0]), t["out/patch_tokens"], "patch tokens")
        rows, columns = tokens.grid
        for size in fixture.options()["scales"]:
            corner = torch.arange(size)
            inside = (corner[:, None] * columns + corner).flatten()  # [size * size]
            starts = (torch.arange(rows - size + 1)[:, None] * columns + torch.arange(columns - size + 1)).flatten()
            keep = torch.cat([torch.zeros(len(starts), 1, dtype=torch.long), 1 + starts[:, None] + inside], dim=1)
            windows = clip.encode_image(t["in/images"], token_sets=keep).cls.unflatten(0, (len(t["in/images"]), -1))
            close(windows, t[f"out/window_embedding_{size}"], f"windows of {size}")


def test_fixture_folder_is_the_one_asked_for() -> None:
    assert (ROOT / "backbone").is_dir()


def test_prompts_with_a_vv_path_are_refused() -> None:
    clip = golden_backbone(Fixture(fixture_paths("winclip")[0]).settings["backbone"])
    with pytest.raises(ValueError, match="V-V path"):
        run_blocks(clip.visual.transformer.resblocks, torch.zeros(1, 2, clip.width), prompts=Prompts([]), vv_from=0)
