"""Changes at random of what users type and of what is read from files, for tests that let one kind of error out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hypothesis import strategies as st

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**20,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "a\nb",
    "\udcff",
    "x" * 1000,
    "${name}",
    "${",
    [],
    {},
    [None],
    [-1],
    {"a": 1},
    {"_target_": "torch.optim.SGD"},
]
ODD_IN_FILES = [*ODD, torch.zeros(2), (1, 2)]
ODD_WORDS = [
    *("null", "true", "-1", "0", "1", "99999999999999999999", "1.5", "-0.5", "nan", "inf", "''", "x", "'a b'", "é"),
    *(
        "[]",
        "[1]",
        "[null]",
        "[-1,2]",
        "[a,b]",
        "[[1]]",
        "{}",
        "{a:1}",
        "${name}",
        "${nothing}",
        "${oc.env:HOME}",
        "${",
    ),
    *("1e308", "-0", "[1,2,3,4,5,6,7,8,9]", "{_target_:torch.optim.SGD}", "a=b", "(", "'"),
]


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each entry of nested mappings and lists, outermost first."""
    listed = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in listed:
        yield (*above, key)
        yield from places(value, (*above, key))


def changed(content: Any, place: tuple[Any, ...], change: Any) -> Any:
    """A copy of nested containers in which one entry is dropped (`change` is `...`) or replaced."""
    content = copy.deepcopy(content)
    node = content
    for key in place[:-1]:
        node = node[key]
    if change is ...:
        del node[place[-1]]
    else:
        node[place[-1]] = change
    return content


def changes(content: Any, odd: list[Any]) -> st.SearchStrategy[Any]:
    """Copies of nested containers with one or two entries dropped or replaced by odd values."""

    def one(node: Any) -> st.SearchStrategy[Any]:
        found = list(places(node))
        if not found:
            return st.just(node)
        return st.builds(
            lambda place, change: changed(node, place, change), st.sampled_from(found), st.sampled_from([..., *odd])
        )

    return one(content).flatmap(lambda node: st.one_of(st.just(node), st.just(node), one(node)))
