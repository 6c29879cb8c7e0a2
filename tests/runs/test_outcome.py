"""What a run leaves for people."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from anomaly_vlm.data import AnomalyData
from anomaly_vlm.data.drawn.products.source import ProceduralSource
from anomaly_vlm.names import slug
from anomaly_vlm.runs.outcome import common_scale, compare_lines, evaluation_scope


def test_one_hot_spot_does_not_darken_the_other_maps() -> None:
    calm, hot = torch.linspace(0.1, 0.2, 1000).view(1, 20, 50), torch.full((1, 20, 50), 0.1)
    hot[0, 0, 0], hot[0, 0, 1] = 50.0, -50.0
    low, high = common_scale([calm, hot])
    assert low == pytest.approx(0.1) and 0.19 < high <= 0.2
    assert common_scale([torch.zeros(1, 2, 2)]) == (0.0, 0.0)


def test_lines_compare_with_the_untrained_head() -> None:
    lines = list(compare_lines({"mean/pixel_auroc": 0.75}, {"mean/pixel_auroc": 0.5, "pixel_auroc": 0.5}))
    assert lines == ["pixel AUROC: untrained head 50.0 -> trained 75.0 (+25.0)"]


def test_slug() -> None:
    assert (slug("metal nut/01 (a).png"), slug("///")) == ("metal_nut_01_a_.png", "image")


@pytest.mark.parametrize(
    ("limit", "note"), [(1000, None), (12, None), (None, None), (4, "a trial on 4 test images only")]
)
def test_a_limit_is_noted_where_it_leaves_something_out(limit: int | None, note: str | None) -> None:
    data = AnomalyData(test=ProceduralSource(test_count=12), limits={"test": limit})
    cfg = OmegaConf.create({"eval_limit": limit, "trainer": {}, "epochs": 1})
    scope = evaluation_scope(SimpleNamespace(data=data, cfg=cfg, facts={}), len(data.samples("test")))
    assert (scope["images_in_test_set"], scope.get("note")) == (12, note)
