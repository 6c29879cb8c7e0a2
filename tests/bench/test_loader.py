"""The benchmark of the loader on a few small files: both ways give the same pixels, and limits are judged as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vlm.bench import _loaders, loader


def test_both_ways_give_the_same_pixels_and_are_timed(tmp_path: Path) -> None:
    samples = _loaders.write_set(tmp_path / "set", ".jpg", (120, 90), 2)
    worst, drafted = loader.differences(samples)
    assert worst < 1e-3 and drafted == 0  # files below twice 518 px have no draft
    work = loader.contenders(samples, tmp_path, 1)
    timed = {name: work[name] for name in (loader.PLAIN, loader.FIRST, loader.STORED)}
    rates = loader.in_turns(timed, 2, turns=1)
    assert all(rate.images_s > 0 and rate.cpu_ms > 0 for rate in rates.values())


@pytest.mark.parametrize("is_large, lines", [(False, 5), (True, 7)])
def test_limits(is_large: bool, lines: int) -> None:
    rates = {
        name: loader.Rate(speed, 1.0)
        for name, speed in {
            loader.PLAIN: 10.0,
            loader.PLAIN_WORKERS: 20.0,
            loader.FIRST: 19.0,
            loader.STORED: 60.0,
            loader.MEMORY: 29.0,
            loader.DRAFT: 40.0,
        }.items()
    }
    found = loader.judge("a set", rates, 0.0, 0.5, is_large=is_large)
    assert len(found) == lines
    assert [limit.what for limit in found if not limit.met] == ["a set: in memory, of plain with workers"]


def test_memory_is_measured_on_both_ways(tmp_path: Path) -> None:
    image = str(tmp_path / "a.jpg")
    _loaders.picture(0, (300, 200)).save(image)
    _loaders.write_mask(tmp_path / "a_mask.png", (300, 200))
    for way in (_loaders.plain, _loaders.ours):
        assert way(image, str(tmp_path / "a_mask.png"))() == {"shapes": [[3, 518, 518]] * 2}
