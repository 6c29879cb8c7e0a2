"""The token cache in whole runs: the same numbers with it and without, nothing stale, nothing computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.backbone.cache import list_caches
from anomaly_vlm.cli import main
from tests.e2e.conftest import QUICK, results

pytestmark = pytest.mark.e2e


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Magnetic tiles of the real layout: three free, three with a blowhole."""
    for kind, count in (("Free", 3), ("Blowhole", 3)):
        folder = tmp_path / "tiles" / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng([kind == "Free", i]).integers(0, 255, (30, 20), dtype=np.uint8)
            mask = np.zeros((30, 20), np.uint8)
            if kind == "Blowhole":
                mask[8:18, 5:15] = 255
                pixels[mask > 0] //= 4
            Image.fromarray(pixels).save(folder / f"exp1_num_{i}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"exp1_num_{i}.png")
    return tmp_path / "tiles"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the sizes of the batches that pass the image tower."""
    sizes: list[int] = []
    encode = ClipBackbone.encode_image

    def counting(self: ClipBackbone, images: torch.Tensor, **kwargs):
        sizes.append(len(images))
        return encode(self, images, **kwargs)

    monkeypatch.setattr(ClipBackbone, "encode_image", counting)
    return sizes


def words(tiles: Path, method: str, out: Path, *more: str) -> list[str]:
    kept = [w for w in QUICK if not w.startswith(("method=", "method.hsf", "train_limit", "eval_limit"))]
    sides = ["source@dataset.train=magnetic_tile", "source@dataset.test=magnetic_tile"]
    roots = [f"dataset.train.root={tiles}", f"dataset.test.root={tiles}"]
    return ["train", f"method={method}", *kept, *sides, *roots, "batch_size=4", "compare_untrained=false",
            "pictures.per_category=0", "epochs=3", f"output_dir={out}", *more]  # fmt: skip


def learned(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("method", ["anomalyclip", "faprompt"])
def test_the_same_numbers_with_and_without(method: str, tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    assert main(words(tiles, method, tmp_path / "off", "cache.tokens=off")) == 0
    assert sum(encoded) == 6 * 3 + 6  # three epochs and the evaluation
    encoded.clear()
    assert main(words(tiles, method, tmp_path / "disk")) == 0
    assert sum(encoded) == 6  # every image once
    encoded.clear()
    assert main(words(tiles, method, tmp_path / "again")) == 0
    assert sum(encoded) == 0  # another run reads what the first one wrote
    assert main(words(tiles, method, tmp_path / "memory", "cache.tokens=memory")) == 0
    assert sum(encoded) == 6
    reference = learned(tmp_path / "off")
    for run in ("disk", "again", "memory"):
        for key, value in learned(tmp_path / run).items():
            torch.testing.assert_close(value, reference[key], rtol=1e-4, atol=1e-6, msg=f"{run}: {key}")
        for key, value in results(tmp_path / "off").items():
            assert (value is None) or results(tmp_path / run)[key] == pytest.approx(value, abs=1e-4), f"{run}: {key}"


def test_changed_images_and_weights_are_computed_anew(tiles: Path, tmp_path: Path, encoded: list[int]) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "first")) == 0
    changed = tiles / "MT_Free" / "Imgs" / "exp1_num_0.jpg"
    with Image.open(changed) as image:
        image.rotate(180).save(changed)
    encoded.clear()
    assert main(words(tiles, "anomalyclip", tmp_path / "second")) == 0
    assert sum(encoded) == 1
    encoded.clear()
    assert main(words(tiles, "anomalyclip", tmp_path / "third", "backbone.random_seed=1")) == 0
    assert sum(encoded) == 6
    assert len(list_caches(tmp_path / "cache")) == 2


def test_augmented_images_pass_the_cache_by(
    tiles: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture
) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "run", "augment.mosaic=1.0")) == 0
    assert "token cache: off for training images" in capsys.readouterr().out
    assert sum(encoded) == 6 * 3 + 6


def test_listing_and_clearing(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(words(tiles, "anomalyclip", tmp_path / "run", "epochs=1")) == 0
    capsys.readouterr()
    assert main(["cache"]) == 0
    assert "tiny_random" in (out := capsys.readouterr().out) and "vv_from" in out
    (info,) = list_caches(tmp_path / "cache")
    assert main(["cache", "clear=nonsense"]) == 2
    assert main(["cache", f"clear={info.place.name}"]) == 0
    assert list_caches(tmp_path / "cache") == []
    assert main(["cache"]) == 0
    assert "no token caches" in capsys.readouterr().out
