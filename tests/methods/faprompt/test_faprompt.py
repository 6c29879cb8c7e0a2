"""FAPrompt's options: defaults of the constructor, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_vlm.backbone import ClipBackbone
from anomaly_vlm.errors import UserError
from anomaly_vlm.methods.faprompt import FAPrompt
from tests.support.few_shot import tiny_backbone


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return tiny_backbone()


def test_the_backbone_alone_is_enough(backbone: ClipBackbone) -> None:
    method = FAPrompt(backbone)
    assert (method.layers, method.vv_from, len(method.deep)) == ((4,), 1, 1)
    assert (method.select, method.score, method.sigma) == ("published", "published", 10.0)
    assert method.words == ("object", "damaged object")
    assert FAPrompt(backbone, state_word="").words == ("object", "object")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "topk"}, "unknown method.select 'topk': choose one of paper, published"),
        ({"score": "code"}, "unknown method.score 'code'"),
        ({"layers": None}, r"method.layers is \[1, 2, 3, 4\]: FAPrompt compares the patches of one block"),
        ({"normal_tokens": 0}, "method.normal_tokens is 0: give a whole number of at least 1"),
        ({"reductions": 4}, "unknown option of FAPrompt 'reductions'.*did you mean reduction"),
    ],
)
def test_wrong_options_are_one_line(backbone: ClipBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        FAPrompt(backbone, **options)
    assert "\n" not in str(error.value)
