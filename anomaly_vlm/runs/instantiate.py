"""Turning nodes of a configuration into objects, and what a configuration from a file may name."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError


def instantiate(node: Any, **objects: Any) -> Any:
    """Hydra's `instantiate` with plain containers, and with wrong options told in one line.

    Args:
        node: A node with `_target_`.
        objects: Ready objects for the call. They reach it as they are, where Hydra would turn dataclasses into
            configurations.

    Raises:
        UserError: What the target raises about its options.
    """
    try:
        call = hydra_instantiate(node, _convert_="all", _partial_=True)
        return call if node.get("_partial_") else call(**objects)
    except (InstantiationException, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError):
            raise UserError(f"{OmegaConf.select(node, '_target_')}: {str(cause).splitlines()[0]}") from error
        raise


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain containers, with its interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]
