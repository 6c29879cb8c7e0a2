"""Who may import whom: a folder imports only from the floors below it (the README's layout, top to bottom)."""

from __future__ import annotations

import ast
from pathlib import Path

import anomaly_vlm

ROOT = Path(anomaly_vlm.__file__).parent
FLOORS = (
    ("cli",),
    ("nano",),
    ("bench",),
    ("api",),
    ("runs",),
    ("methods",),
    ("reporting", "detectors"),
    ("data",),
    ("caching", "losses", "texts"),
    ("backbone",),
    ("metrics",),
    ("options",),
    ("files",),
    ("errors", "names", "__init__"),
)
LEVEL = {name: len(FLOORS) - i for i, names in enumerate(FLOORS) for name in names}
STANDS_ON = {("faprompt", "anomalyclip"), ("finegrainedad", "promptad")}  # by their papers


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it, as dotted names below the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("anomaly_vlm.") for name in found if name.startswith("anomaly_vlm.")}


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_folder_has_a_floor() -> None:
    names = {top(path) for path in ROOT.rglob("*.py")}
    assert names == set(LEVEL)


def test_folders_import_from_the_floors_below() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        own = top(path)
        if own == "__init__":  # names that are loaded when they are used
            continue
        for name in sorted(imports(path)):
            other = name.split(".")[0]
            if other in LEVEL and other != own and LEVEL[other] >= LEVEL[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_tools() -> None:
    tools = {"nano", "bench"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(ROOT.rglob("*.py"))
        if top(path) not in (*tools, "cli")
        for name in imports(path)
        if name.split(".")[0] in tools
    ]
    assert not wrong, "\n".join(wrong)


def test_no_method_imports_another() -> None:
    """But where one stands on another by its paper."""
    folder = ROOT / "methods"
    wrong = []
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).parts[0]
        for name in imports(path):
            words = name.split(".")
            other = words[1] if words[0] == "methods" and len(words) > 1 else own
            allowed = {own, "base", *(() if own == "base" else ("shared",))}
            if other not in allowed and (own, other) not in STANDS_ON:
                wrong.append(f"{path.relative_to(folder)} imports {name}")
    assert not wrong, "\n".join(wrong)
