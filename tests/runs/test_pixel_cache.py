"""`cache.pixels`: the configuration decides whether resized images are kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anomaly_vlm.data import AnomalyData
from anomaly_vlm.runs.build import attach_cache
from anomaly_vlm.runs.compose import compose
from tests.data.made import PIXELS


@pytest.mark.parametrize("wanted", [True, False])
def test_resized_images_are_kept_where_asked_for(wanted: bool, tmp_path: Path) -> None:
    cfg = compose(["method=winclip", "backbone=tiny_random", f"cache.pixels={wanted}", f"cache.folder={tmp_path}"])
    data = AnomalyData()
    method: Any = None  # without a frozen tower
    data.preprocess = PIXELS
    attach_cache(cfg, data, method)
    stored = data.dataset_of([]).stored_pixels
    assert (stored is not None) == wanted
    assert stored is None or (stored.place is not None and stored.place.parent == tmp_path)
