"""What the golden tests of AnomalyCLIP and FAPrompt share: batch, towers, gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.data.types import Batch
from anomaly_vlm.methods.anomalyclip.dual_path import DualPathMethod
from anomaly_vlm.methods.base.published import layout_of, load_published
from tests.support.golden import Fixture, golden_backbone

M = TypeVar("M", bound=DualPathMethod)
UNUSED = "never called, or a buffer that follows from the token table"


def options(fixture: Fixture) -> dict[str, Any]:
    """The settings that both methods share, under this suite's names."""
    o = fixture.options()
    return {
        "dual_blocks": o["dual_path_blocks"],
        "class_word": o["class_word"],
        "deep_depth": o["deep_text_depth"],
        "deep_length": o["deep_text_length"],
        "temperature": o["temperature"],
        "sigma": o["gaussian_sigma"],
    }


def backbone(fixture: Fixture) -> ClipBackbone:
    return golden_backbone(
        fixture.settings["backbone"], pos_resize="bilinear", image_size=fixture.settings["image_size"]
    )


def load(fixture: Fixture, method: M, folder: Path) -> M:
    """The official parameters, all keys of the file, through the importer."""
    path = folder / "published.safetensors"
    save_file(fixture.inputs("ckpt/"), path)
    return load_published(method, path).eval()


def make_batch(fixture: Fixture) -> Batch:
    mask = fixture.input("in/mask").to(torch.uint8)
    assert torch.equal((fixture.input("in/mask_raw")[:, 0] > 0.5).to(torch.uint8), mask)
    names = [f"image {i}" for i in range(len(mask))]
    label = fixture.input("in/label").long()
    return Batch(
        fixture.input("in/images"), label, mask, ["any"] * len(mask), names, torch.arange(len(mask)), list(names)
    )


def check_towers(fixture: Fixture, method: DualPathMethod, batch: Batch) -> None:
    """Position grid and both paths, block by block (image 0)."""
    clip, first = method.backbone, method.vv_from
    taps = {"first_dual": first + 1, "final": clip.num_layers, **({"plain_last": first} if first else {})}
    tokens = clip.encode_image(batch.image[:1], layers=list(taps.values()), vv_from=first)
    fixture.check("mid/pos_embed_resized", clip.positions(tokens.grid))
    for name, dual, ordinary in zip(taps, tokens.tokens, tokens.ordinary, strict=True):
        for key, value in ((f"{name}_vv", dual), (f"{name}_ori", ordinary), (name, ordinary)):
            if fixture.has(f"mid/block_{key}"):
                fixture.check(f"mid/block_{key}", value)
    every = clip.encode_image(batch.image, layers=method.layers, vv_from=first)
    cls = clip.project(every.cls_token, ln_post=method.cls_ln_post)
    fixture.check("out/cls_raw", cls)
    fixture.check("out/image_features", torch.nn.functional.normalize(cls, dim=-1))


def check_prompts(fixture: Fixture, key: str, sentences: tuple[Tensor, Tensor]) -> None:
    """Sentence embeddings up to the end token of each; what stands behind it is never read."""
    ids, embedded = sentences
    expected = fixture.tensors[key].flatten(0, -3)  # [..., K, T, Dt] -> [K, T, Dt]
    for row, ours, theirs in zip(ids, embedded.detach(), expected, strict=True):
        length = int(row.argmax()) + 1
        torch.testing.assert_close(ours[:length], theirs[:length], rtol=1e-4, atol=1e-5)
    fixture.mark(key)


def check_gradients(fixture: Fixture, method: DualPathMethod, group: str = "") -> None:
    """Gradients of the total loss; those that the reference pushes through float16 against their float32 twins, too."""
    for name, parameter in method.learnable().items():
        key = layout_of(method).key(method, name)
        assert parameter.grad is not None, f"{name}: no gradient"
        for kind in ("grad", "grad_fp32"):
            full = f"{group}{kind}/{key}"
            if not fixture.has(full):
                continue
            gradient = parameter.grad.reshape(fixture.tensors[full].shape)
            if kind == "grad" and key.startswith("compound_prompts_text."):
                fixture.check(full, gradient, rtol=1e-2, atol=2e-4)
            else:
                fixture.check(full, gradient)


def unused(fixture: Fixture) -> dict[str, str]:
    """Keys of the official file that hold nothing learned, with the reason."""
    words = ("compound_prompt_projections.", "token_prefix_", "token_suffix_", "tokenized_prompts_")
    return {key: UNUSED for key in fixture.tensors if key.removeprefix("ckpt/").startswith(words)}
