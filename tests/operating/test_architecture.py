"""The file listing is the architecture: what is public, what has a twin, which way imports point."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import tomllib
import typing
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, create_model

import llama_index_bedrock_sessions as package
from llama_index_bedrock_sessions import Conversation, emulator

ROOT = Path(__file__).parents[2]
PACKAGE = "llama_index_bedrock_sessions"
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
WITHOUT_IO = {"invocation"}
"""Public methods of a conversation that make no call."""


TREE = ROOT / PACKAGE
CONTRACTS = tomllib.loads(PYPROJECT)["tool"]["importlinter"]["contracts"]


def imports(path: Path) -> set[str]:
    """Return what a file imports at run time or for its types, by full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def rooms(tree: Path) -> set[str]:
    """Return the packages and modules at the top."""
    return {path.stem for path in tree.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {
        "__init__"
    }


def files(tree: Path, room: str) -> list[Path]:
    """Return the files of a room."""
    return sorted((tree / room).rglob("*.py")) or [tree / f"{room}.py"]


def layers() -> list[set[str]]:
    """Return the layers of the rooms, the highest first."""
    (found,) = (contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
    return [{room.strip() for room in layer.split("|")} for layer in found]


def forbidden() -> Iterator[tuple[str, set[str]]]:
    """Yield each room with what it may not import."""
    above: set[str] = set()
    for layer in layers():
        for room in layer:
            yield room, {f"{PACKAGE}.{other}" for other in above | layer - {room}}
        above |= layer
    for contract in CONTRACTS:
        if contract["type"] == "forbidden":
            for module in contract["source_modules"]:
                yield module.rpartition(".")[2], set(contract["forbidden_modules"])


def violations(tree: Path) -> list[str]:
    """Return what the files of a tree import and may not."""
    return [
        f"{path.relative_to(tree)} imports {name}"
        for room, names in forbidden()
        for path in files(tree, room)
        for name in sorted(imports(path))
        if any(name == each or name.startswith(f"{each}.") for each in names)
    ]


def test_what_is_visible_is_public_and_sorted() -> None:
    """`__all__` is sorted, without repetition, and equals the visible names that are not modules."""
    visible = {
        name for name, value in vars(package).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert list(package.__all__) == sorted(visible)


def test_public_names_are_documented() -> None:
    """Every public class and every public method and property of it has a docstring."""
    missing = []
    for name in package.__all__:
        value: Any = getattr(package, name)
        members = [(name, value), *((f"{name}.{n}", m) for n, m in vars(value).items() if not n.startswith("_"))]
        missing += [n for n, m in members if (inspect.isroutine(m) or inspect.isclass(m)) and not inspect.getdoc(m)]
    assert missing == []


def test_every_method_of_a_conversation_that_calls_has_a_twin() -> None:
    """Each public method of a conversation that talks to the service has a coroutine `a...` of the same arguments."""
    public = {n: m for n, m in vars(Conversation).items() if inspect.isfunction(m) and not n.startswith("_")}
    sync = {n for n, m in public.items() if not inspect.iscoroutinefunction(m)} - WITHOUT_IO
    assert [name for name in sorted(sync) if f"a{name}" not in public] == []
    for name in sync:
        assert inspect.iscoroutinefunction(public[f"a{name}"])
        assert inspect.signature(public[f"a{name}"]) == inspect.signature(public[name])


def test_imports_are_as_the_contracts_say() -> None:
    """No room imports one above it, and none what is forbidden to it."""
    assert violations(TREE) == []


def test_every_room_has_its_layer() -> None:
    """The contracts name each room once, and so does the picture in CONTRIBUTING."""
    there = sorted(rooms(TREE))
    assert sorted(room for layer in layers() for room in layer) == there
    (picture,) = re.findall("```mermaid(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert sorted(set(re.findall(r"\b([a-z_]+)\[\(?\"", picture))) == there
    aws = next(contract for contract in CONTRACTS if "boto3" in contract.get("forbidden_modules", ()))
    meets_aws = set(there) - {module.rpartition(".")[2] for module in aws["source_modules"]}
    assert meets_aws == {"_bedrock", "cli", "emulator"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("_journal", f"from {PACKAGE}._bedrock.client import SessionClient"),
        ("emulator", f"from {PACKAGE}.errors import UsageError"),
        ("testing", f"from {PACKAGE} import events"),
        ("copying", f"from {PACKAGE}.memory import BedrockSessionsMemory"),
        ("emulator", "import llama_index.core"),
        ("_conversation", "import boto3"),
        ("_journal", "import time"),
    ],
)
def test_a_forbidden_import_is_found(room: str, line: str, tmp_path: Path) -> None:
    """A new module with such an import, which nothing names, breaks a contract."""
    shutil.copytree(TREE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / PACKAGE / room
    path = folder / "new.py" if folder.is_dir() else folder.with_suffix(".py")
    before = path.read_text("utf-8") if path.exists() else ""
    path.write_text(f"{before}\n{line}\n", "utf-8")
    assert violations(tmp_path / PACKAGE)


def test_no_import_cycle() -> None:
    """Modules do not import each other in a circle, not even for their types."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in TREE.rglob("*.py")}
    graph = {name: imports(path) & modules.keys() - {name} for name, path in modules.items()}
    TopologicalSorter(graph).prepare()


def test_the_package_itself_only_gives_names() -> None:
    """`__init__.py` holds a docstring, imports, `__all__`, and the loop that sets the module of what is public."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    kinds = [type(node) for node in tree.body]
    assert set(kinds) <= {ast.Expr, ast.ImportFrom, ast.Assign, ast.For}
    assert kinds.count(ast.Assign) == kinds.count(ast.Expr) == kinds.count(ast.For) == 1


PUBLIC = [getattr(module, name) for module in (package, emulator) for name in module.__all__]


@pytest.mark.parametrize("public", [p for p in PUBLIC if hasattr(p, "__name__")], ids=lambda public: public.__name__)
def test_public_names_carry_their_package(public: type) -> None:
    """A saved context stores the qualified name of a class, which is the same after a move of modules.

    pydantic resolves annotations in the module that a class names. So a model can be inherited from, and a dataclass
    can be a field of a model.
    """
    assert public.__module__ == (PACKAGE if public.__name__ in package.__all__ else f"{PACKAGE}.emulator")
    if dataclasses.is_dataclass(public):
        create_model("Holder", __config__=ConfigDict(arbitrary_types_allowed=True), it=(public, ...))
        assert typing.get_type_hints(public)
    elif inspect.isclass(public) and issubclass(public, BaseModel):
        derived = type("Derived", (public,), {"__annotations__": {"more": int}, "__module__": __name__})
        assert getattr(derived, "__pydantic_complete__", False)
