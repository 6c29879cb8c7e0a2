"""Masks for boxes: SAM on random weights against transformers' own processing, contrast by hand, masks on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from anomaly_vlm.detectors import ContrastSegmenter, MaskStore, Segmenter
from anomaly_vlm.detectors import grounding as grounding_module
from anomaly_vlm.detectors.contrast import otsu
from anomaly_vlm.detectors.sam import SamSegmenter, as_input
from anomaly_vlm.errors import UserError
from tests.detectors.tiny import SAM_SIDE, picture, write_sam

BOXES = torch.tensor([[5.0, 6.0, 40.0, 30.0], [0.0, 0.0, 90.0, 60.0], [20.5, 10.25, 60.0, 64.0]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam(tmp_path_factory.mktemp("sam"))


def pixels(seed: int = 0, width: int = 90, height: int = 60) -> Tensor:
    return torch.from_numpy(np.array(picture(seed, width, height))).permute(2, 0, 1).contiguous()


# ---- SAM -------------------------------------------------------------------------------------------------------------


def test_sam_equals_transformers_own_processing(folder: Path) -> None:
    from transformers import SamImageProcessor, SamModel, SamProcessor

    image = pixels()
    masks = SamSegmenter(weights=str(folder), device="cpu", boxes_at_a_time=2).masks(image, BOXES)
    sizes: dict[str, Any] = {
        "size": {"longest_edge": SAM_SIDE},
        "pad_size": {"height": SAM_SIDE, "width": SAM_SIDE},
        "mask_size": {"longest_edge": SAM_SIDE // 4},
        "mask_pad_size": {"height": SAM_SIDE // 4, "width": SAM_SIDE // 4},
    }
    processor = SamProcessor(SamImageProcessor(**sizes))
    given = processor(
        images=Image.fromarray(image.permute(1, 2, 0).numpy()), input_boxes=[BOXES.tolist()], return_tensors="pt"
    )
    model = SamModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(
            pixel_values=given["pixel_values"], input_boxes=given["input_boxes"].float(), multimask_output=False
        )
    (expected,) = processor.post_process_masks(
        out.pred_masks, given["original_sizes"], given["reshaped_input_sizes"], pad_size=sizes["pad_size"]
    )
    assert masks.shape == (3, 60, 90) and masks.dtype == torch.bool
    assert 0.02 < masks.float().mean() < 0.98, "the random model says something"
    assert (masks != expected[:, 0]).float().mean() < 0.005  # 8-bit resizing differs by a grey level here and there


def test_sam_input_keeps_the_aspect_and_pads_with_zeros() -> None:
    wide, small = as_input(pixels(), SAM_SIDE)
    assert small == (43, 64) and wide.shape == (3, SAM_SIDE, SAM_SIDE)
    assert wide[:, 43:].eq(0).all() and not wide[:, :43].eq(0).all()
    white, _ = as_input(torch.full((3, 8, 8), 255, dtype=torch.uint8), SAM_SIDE)
    torch.testing.assert_close(
        white[:, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_masks_are_kept_by_pixels_boxes_and_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"weights": str(folder), "device": "cpu", "folder": str(tmp_path)}
    first = SamSegmenter(**options).masks(pixels(), BOXES)
    monkeypatch.setattr(SamSegmenter, "load", lambda self: pytest.fail("the weights were read again"))
    again = SamSegmenter(**options)
    assert torch.equal(again.masks(pixels(), BOXES), first)
    assert again.masks(pixels(), BOXES[:0]).shape == (0, 60, 90), "no box, no model"
    for other in ((pixels(1), BOXES), (pixels(), BOXES[:2]), (pixels(), BOXES + 1)):
        with pytest.raises(pytest.fail.Exception):
            again.masks(*other)


def test_absent_or_foreign_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding_module, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"segmenter 'facebook/sam-vit-huge'.*segmenter\.weights=FOLDER.*contrast"):
        SamSegmenter(weights="facebook/sam-vit-huge")
    with pytest.raises(UserError, match=r"segmenter weights './none': no such file"):
        SamSegmenter(weights="./none")
    with pytest.raises(UserError, match=r"no folder with a config\.json"):
        SamSegmenter(weights=str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(UserError, match="do not load"):
        SamSegmenter(weights=str(tmp_path), device="cpu").masks(pixels(), BOXES)
    with pytest.raises(UserError, match="boxes_at_a_time is 0"):
        SamSegmenter(weights=str(tmp_path), boxes_at_a_time=0)


# ---- contrast --------------------------------------------------------------------------------------------------------


def test_a_spot_is_cut_out_of_its_box() -> None:
    image = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    image[:, 12:18, 14:24] = torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None]
    box = torch.tensor([[10.0, 8.0, 30.0, 25.0]])
    expected = torch.zeros(1, 40, 40, dtype=torch.bool)
    expected[0, 12:18, 14:24] = True
    assert torch.equal(ContrastSegmenter().masks(image, box), expected)


def test_boxes_without_contrast_or_surroundings() -> None:
    image = pixels()
    flat = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    plain = ContrastSegmenter().masks(flat, torch.tensor([[10.2, 8.0, 30.0, 25.0]]))[0]
    assert plain[8:25, 10:30].all() and plain.sum() == 17 * 20
    assert ContrastSegmenter().masks(image, torch.tensor([[-5.0, -5.0, 200.0, 200.0]])).all()
    assert not ContrastSegmenter().masks(image, torch.tensor([[100.0, 10.0, 120.0, 20.0]])).any(), "outside the image"


def test_otsu_splits_two_heaps() -> None:
    values = np.concatenate([np.linspace(0, 1, 50), np.linspace(8, 9, 10)])
    assert 1 <= otsu(values) <= 8
    assert (values > otsu(values)).sum() == 10


def test_wrong_input() -> None:
    with pytest.raises(UserError, match=r"segmenter\.ring is 0"):
        ContrastSegmenter(ring=0)
    with pytest.raises(UserError, match="not finite"):
        ContrastSegmenter().masks(pixels(), torch.tensor([[0.0, 0, float("nan"), 5]]))
    with pytest.raises(ValueError, match="expected uint8"):
        ContrastSegmenter().masks(pixels().float(), BOXES)


# ---- store -----------------------------------------------------------------------------------------------------------


class Counting(Segmenter):
    name = "counting"
    asked = 0

    def look(self, image: Tensor, boxes: Tensor) -> Tensor:
        self.asked += 1
        return torch.rand(len(boxes), *image.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5

    def identity(self) -> dict[str, Any]:
        return {"weights": "a"}


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_entry_is_computed_anew(tmp_path: Path, damage: bytes | None) -> None:
    segmenter = Counting(MaskStore(tmp_path))
    first = segmenter.masks(pixels(), BOXES)
    assert torch.equal(segmenter.masks(pixels(), BOXES), first) and segmenter.asked == 1
    (file,) = tmp_path.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + b"abc" if damage is None else damage)
    assert torch.equal(segmenter.masks(pixels(), BOXES), first) and segmenter.asked == 2
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    segmenter = Counting(MaskStore(tmp_path / "file" / "store"))
    assert segmenter.masks(pixels(), BOXES).shape == (3, 60, 90)
    assert segmenter.store is not None and segmenter.store.written == 0
