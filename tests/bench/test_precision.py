"""The benchmark of precisions: which methods it covers, and what it says of a difference."""

from __future__ import annotations

from anomaly_vlm.bench.precision import BOUND, METRICS, _line, learning_methods
from anomaly_vlm.runs.groups import choices


def test_every_method_that_learns_on_drawn_products_is_covered() -> None:
    found = learning_methods()
    assert {
        "adaclip",
        "anomalyclip",
        "faprompt",
        "aaclip",
        "filo",
        "promptad",
        "uniadet",
        "vl4ad",
        "linear_heads",
    } <= set(found)
    assert not {"winclip", "dinov2", "anomalydino", "subspacead", "musc", "saa", "anovl"} & set(found)
    assert set(found) <= set(choices("method"))


def test_a_difference_beyond_the_bound_is_reported() -> None:
    whole = dict.fromkeys(METRICS, 0.5)
    near, far = ({**whole, "pixel_aupro": 0.5 + step} for step in (0.01, 0.03))
    assert _line("adaclip", "scored in bf16-mixed", near, whole, BOUND["scored"])[-3:] == ("1.00", "2", "yes")
    assert _line("adaclip", "scored in bf16-mixed", far, whole, BOUND["scored"])[-3:] == ("3.00", "2", "NO")
