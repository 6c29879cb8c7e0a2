"""Turning nodes of a configuration into objects: the one place where a `_target_` is looked up."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, get_method
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf

from anomaly_vlm.errors import UserError, unknown_choice
from anomaly_vlm.options import check_arguments, option_names
from anomaly_vlm.runs.trust import check_target, check_targets


def instantiate(node: Any, *, trusted: Sequence[str] = (), kind: type = object, **objects: Any) -> Any:
    """Hydra's `instantiate` with plain containers, for targets that are allowed, with wrong options reported in one line.

    Args:
        node: A node with `_target_`.
        trusted: Packages of the user's own, see `runs.trust`.
        kind: What the object has to be.
        objects: Ready objects for the call. They reach it as they are, where Hydra would turn dataclasses into
            configurations.

    Raises:
        UserError: A target that is not allowed, or what the target raises about its options.
    """
    options = plain(node)
    target = options.get("_target_")
    check_targets(options, source=f"the configuration of {target}", trusted=trusted)
    try:
        call = hydra_instantiate(options, _convert_="all", _partial_=True)
        made = call if options.get("_partial_") else call(**objects)
    except (InstantiationException, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, UserError):
            raise cause from error
        if isinstance(cause, TypeError | ValueError | ImportError | AttributeError):
            raise UserError(f"{target}: {(str(cause).splitlines() or ['wrong options'])[0]}") from error
        if cause is None:
            raise UserError(
                f"{target} cannot be loaded ({' '.join(str(error).split())[:160]}): check its name"
            ) from error
        raise
    if not isinstance(made, kind):
        raise UserError(f"{target} makes a {type(made).__name__}: give one that makes a {kind.__name__}")
    return made


def check_options(node: Any, name: str, *, trusted: Sequence[str] = ()) -> None:
    """Raises a `UserError` for a key of a node that its target does not take, which else is found out late.

    Args:
        node: With `_target_`, such as an optimiser that is built with its parameters later.
        name: Of the node, for the message.
        trusted: Packages of the user's own.
    """
    options = plain(node)
    if "_target_" not in options:
        raise UserError(f"{name}.{next(iter(options))} is set, but there is no {name}: choose one with {name}=NAME")
    parameters = inspect.signature(own_function(str(options["_target_"]), trusted=trusted)).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        return
    for key in options:
        if not key.startswith("_") and key not in parameters:
            raise unknown_choice(f"key of {name}", key, list(parameters))


def check_backbone_options(cfg: DictConfig) -> None:
    """Raises a `UserError` for a key that the backbone's loader does not have, or a value that it does not take."""
    check_options(cfg.backbone, "backbone", trusted=cfg.trust)
    options = plain(cfg.backbone)
    target = str(options["_target_"])
    if target.startswith("anomaly_vlm."):  # a user's own loader may be annotated in any way
        given = {key: value for key, value in options.items() if not key.startswith("_")}
        check_arguments(own_function(target), given, owner="backbone")


def check_method_options(cfg: DictConfig) -> None:
    """Raises a `UserError` for an option that the method does not have, or a value that it does not take.

    Its constructor says the same, but only once the backbone is loaded.
    """
    chosen = method_class(cfg.method, trusted=cfg.trust)
    options = {key: value for key, value in plain(cfg.method).items() if not key.startswith("_")}
    known = option_names(chosen)
    if unknown := [name for name in options if name not in known]:
        raise unknown_choice(f"option of {chosen.__name__}", unknown[0], known)
    check_arguments(chosen.__init__, options, owner="method")


def target_class(node: Any, *, trusted: Sequence[str] = ()) -> Any:
    """The class that a node's `_target_` names.

    Raises:
        UserError: It is not allowed, or cannot be loaded.
    """
    name = str(plain(node)["_target_"])
    check_target(name, source="the configuration", trusted=trusted)
    try:
        return get_class(name)
    except Exception as error:  # whatever importing a user's module raises
        raise UserError(f"{name} cannot be loaded ({' '.join(str(error).split())[:160]}): check its name") from error


def method_class(node: Any, *, trusted: Sequence[str] = ()) -> Any:
    """The class of a method that a node's `_target_` names.

    Raises:
        UserError: See `target_class`; or it is no method.
    """
    from anomaly_vlm.methods.base.method import AnomalyMethod

    found = target_class(node, trusted=trusted)
    if not issubclass(found, AnomalyMethod):
        raise UserError(f"method._target_ is {node._target_}, which is no method: give a subclass of AnomalyMethod")
    return found


def own_function(name: str, *, trusted: Sequence[str] = ()) -> Any:
    """A function or class of this suite, or of a package that the user trusts, such as a loss.

    Raises:
        UserError: The package is not trusted, or has no such function.
    """
    check_target(name, source="the configuration", trusted=trusted)
    try:
        return get_method(name)
    except Exception as error:  # whatever importing a user's module raises
        raise UserError(f"{name} cannot be loaded ({' '.join(str(error).split())[:160]}): check its name") from error


def plain(node: Any) -> dict[str, Any]:
    """A node as plain containers, with its interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)  # type: ignore[return-value]
