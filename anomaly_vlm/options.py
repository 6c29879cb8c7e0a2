"""Options of constructors, checked once against their type hints.

A constructor says what it accepts in its annotations: `Literal["linear", "clip"]`, `Annotated[int, AtLeast(1)]`, a frozen
dataclass for a group of options. `check_arguments` reads them and reports a wrong value in one line.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

from anomaly_vlm.errors import UserError, unknown_choice

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, used inside `Annotated`.

    Args:
        low: Smallest value; None for no bound.
        high: Largest value; None for no bound.
        open_low: Whether `low` itself is excluded.
        open_high: Whether `high` itself is excluded.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value lies within the bounds."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = self.high is None or (value < self.high if self.open_high else value <= self.high)
        return above and below

    def __str__(self) -> str:
        words = []
        if self.low is not None:
            words.append(f"{'above' if self.open_low else 'of at least'} {self.low:g}")
        if self.high is not None:
            words.append(f"{'below' if self.open_high else 'at most'} {self.high:g}")
        return " and ".join(words)


def AtLeast(low: float) -> Range:  # noqa: N802 (reads as a type inside Annotated)
    """Numbers of at least `low`."""
    return Range(low=low)


def Above(low: float) -> Range:  # noqa: N802
    """Numbers above `low`."""
    return Range(low=low, open_low=True)


def Within(low: float, high: float) -> Range:  # noqa: N802
    """Numbers from `low` to `high`, both included."""
    return Range(low=low, high=high)


PositiveInt = Annotated[int, AtLeast(1)]
PositiveFloat = Annotated[float, Above(0)]
Fraction = Annotated[float, Within(0, 1)]


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Checks one value against a type hint.

    Args:
        name: What the value is called in messages, such as `method.hsf.k`.
        value: The value; mappings become the dataclass that the hint names.
        hint: Any annotation. Classes that are neither plain types nor dataclasses are not looked at.

    Returns:
        The value, with groups of options built.

    Raises:
        UserError: One line with the name, the value and what is expected.
    """
    hint, bounds = _unwrapped(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return _check_union(name, value, typing.get_args(hint))
    if (origin := typing.get_origin(hint)) is Literal:
        allowed = typing.get_args(hint)
        if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
            raise unknown_choice(name, str(value), [str(choice) for choice in allowed])
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _check_group(name, value, hint)
    if origin in (Sequence, list, tuple) and not isinstance(value, str):
        return _check_sequence(name, value, hint)
    if origin in (Mapping, dict) and isinstance(value, Mapping):
        inner = typing.get_args(hint)[1]
        return {key: check_value(f"{name}.{key}", entry, inner) for key, entry in value.items()}
    if not _fits(value, hint) or not all(bound.holds(value) for bound in bounds):
        raise UserError(f"{name} is {value!r}: give {expected(hint, bounds)}")
    return value


def expected(hint: Any, bounds: Sequence[Range] = ()) -> str:
    """What a hint accepts, in words: `a whole number of at least 1`."""
    hint, inside = _unwrapped(hint)
    bounds = [*bounds, *inside]
    if typing.get_origin(hint) in (Union, types.UnionType):
        return ", or ".join("null" if arg is type(None) else expected(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return "a list" if not (args := typing.get_args(hint)) else f"a list, each {expected(args[0])}"
    plain = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    words = plain.get(hint, "a group of options" if typing.get_origin(hint) in (Mapping, dict) else "another value")
    return " ".join([words, *map(str, bounds)])


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], *, owner: str) -> dict[str, Any]:
    """Checks keyword arguments of a function against its annotations.

    Args:
        function: A function, constructor or class whose parameters are annotated.
        arguments: Keyword arguments. Names that the function does not have are passed on as they are.
        owner: Prefix of names in messages, such as `method`.

    Returns:
        The arguments, with groups of options built from mappings.

    Raises:
        UserError: See `check_value`.
    """
    hints = _hints(function)
    return {
        name: check_value(f"{owner}.{name}", value, hints[name]) if name in hints else value
        for name, value in arguments.items()
    }


def call_checked(function: Callable[..., T], options: Mapping[str, Any], *, owner: str) -> T:
    """Calls a function with the options of a configuration.

    Args:
        function: A function or class whose parameters are annotated and have no other names than options.
        options: By name.
        owner: Prefix of names in messages.

    Raises:
        UserError: An option is unknown or missing, or see `check_value`.
    """
    parameters = inspect.signature(function).parameters
    for name in options:
        if name not in parameters:
            raise unknown_choice(f"key of {owner}", str(name), list(parameters))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise UserError(f"{owner} has no {name}: give {owner}.{name}=VALUE")
    return function(**check_arguments(function, options, owner=owner))


def checked_constructor(
    init: Callable[..., None],
    *,
    owner: str,
    hidden: Sequence[str] = (),
    first: Callable[..., None] | None = None,
) -> Callable[..., None]:
    """A constructor whose keyword arguments are checked against its annotations before it runs.

    Args:
        init: The constructor. Keywords that neither it nor the class's other constructors have are reported with the
            choices.
        owner: See `check_arguments`.
        hidden: Keywords that are no options of a user, and not listed among the choices.
        first: Called with all arguments before anything else is looked at.
    """

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        if first is not None:
            first(self, *args, **options)
        names = option_names(type(self))
        if unknown := [name for name in options if name not in names and name not in hidden]:
            choices = [name for name in names if name not in hidden]
            raise unknown_choice(f"option of {type(self).__name__}", unknown[0], choices)
        init(self, *args, **check_arguments(init, options, owner=owner))

    return checked


def option_defaults(cls: type) -> dict[str, Any]:
    """Keyword options of a class and of the classes whose constructors it calls, with their defaults.

    Options without a default are left out. A subclass's default wins over that of its base.
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        for parameter in _own_parameters(base):
            if parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter.default)
    return found


def option_names(cls: type) -> list[str]:
    """Names of all keyword options of a class, those of its bases included."""
    return list(dict.fromkeys(parameter.name for base in cls.__mro__ for parameter in _own_parameters(base)))


def _own_parameters(cls: type) -> list[inspect.Parameter]:
    if cls is object or "__init__" not in cls.__dict__:
        return []
    return [p for p in inspect.signature(cls.__dict__["__init__"]).parameters.values() if p.kind is p.KEYWORD_ONLY]


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    target = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    hints = typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    hints.pop("return", None)
    return hints


def _unwrapped(hint: Any) -> tuple[Any, list[Range]]:
    """A hint without `Annotated`, and its bounds."""
    if typing.get_origin(hint) is not Annotated:
        return hint, []
    inner, *notes = typing.get_args(hint)
    return inner, [note for note in notes if isinstance(note, Range)]


def _fits(value: Any, hint: Any) -> bool:
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str:
        return isinstance(value, str)
    if hint is type(None):
        return value is None
    if typing.get_origin(hint) in (Mapping, dict):
        return isinstance(value, Mapping)
    if typing.get_origin(hint) in (Sequence, list, tuple):
        return isinstance(value, Sequence) and not isinstance(value, str)
    return True


def _check_union(name: str, value: Any, branches: Sequence[Any]) -> Any:
    """The first branch that accepts the value; where one branch alone has its kind, that branch reports what is wrong."""
    first: UserError | None = None
    for branch in branches:
        try:
            return check_value(name, value, branch)
        except UserError as error:
            plain, _ = _unwrapped(branch)
            if first is None and (_is_group(plain) if isinstance(value, Mapping) else _fits(value, plain)):
                first = error
    real = [branch for branch in branches if branch is not type(None)]
    if all(typing.get_origin(_unwrapped(branch)[0]) is Literal for branch in real):
        choices = [str(choice) for branch in real for choice in typing.get_args(_unwrapped(branch)[0])]
        raise unknown_choice(name, str(value), choices)
    if first is not None and (len(real) == 1 or isinstance(value, Mapping)):
        raise first
    null = ", or null" if len(real) < len(branches) else ""
    raise UserError(f"{name} is {value!r}: give {', or '.join(map(expected, real))}{null}")


def _is_group(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and isinstance(hint, type)


def _check_group(name: str, value: Any, hint: type) -> Any:
    if isinstance(value, hint):
        return value
    fields = [field.name for field in dataclasses.fields(hint)]
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r}: give a group of options ({', '.join(fields)})")
    for key in value:
        if key not in fields:
            raise unknown_choice(f"key of {name}", str(key), fields)
    hints = typing.get_type_hints(hint, include_extras=True)
    return hint(**{key: check_value(f"{name}.{key}", entry, hints[key]) for key, entry in value.items()})


def _check_sequence(name: str, value: Any, hint: Any) -> Any:
    if not isinstance(value, Sequence):
        raise UserError(f"{name} is {value!r}: give {expected(hint)}")
    arguments = [arg for arg in typing.get_args(hint) if arg is not Ellipsis]
    fixed = typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint)
    if fixed and len(value) != len(arguments):
        raise UserError(f"{name} is {list(value)}: give a list of {len(arguments)}")
    inner = arguments if fixed else arguments[:1] * len(value)
    checked = [
        check_value(f"{name}[{i}]", entry, each) for i, (entry, each) in enumerate(zip(value, inner, strict=False))
    ]
    return tuple(checked) if isinstance(value, tuple) or typing.get_origin(hint) is tuple else checked
