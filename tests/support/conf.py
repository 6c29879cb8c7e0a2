"""Parts of the shipped configuration that tests build from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[2] / "conf"


def method_conf(name: str) -> dict[str, Any]:
    """The `method` node of `conf/method/NAME.yaml`, interpolations unresolved."""
    return yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())["method"]


def loss_conf(name: str) -> dict[str, Any]:
    """`conf/loss/NAME.yaml`."""
    return yaml.safe_load((CONF / "loss" / f"{name}.yaml").read_text())
