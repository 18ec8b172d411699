"""The file listing is the architecture: what is public, what has a twin, which way imports point."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import llama_index_bedrock_sessions as package
from llama_index_bedrock_sessions import Conversation

ROOT = Path(__file__).parent.parent
PACKAGE = "llama_index_bedrock_sessions"
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
WITHOUT_IO = {"configure", "drop", "forget", "invocation"}
"""Public methods of a conversation that make no call."""


def contract(name: str) -> str:
    """Return the text of an import contract of pyproject.toml."""
    return next(part for part in PYPROJECT.split("[[tool.importlinter.contracts]]") if f'name = "{name}' in part)


def names(text: str, member: str) -> list[str]:
    """Return an array of strings of a contract."""
    found = re.search(rf"^{member} = (\[.*?\])$", text, re.DOTALL | re.MULTILINE)
    assert found, member
    return list(ast.literal_eval(found[1]))


def imports(path: Path) -> set[str]:
    """Return what a file imports at run time or for its types, by full names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def files(module: str) -> list[Path]:
    """Return the files of a module or package of ours."""
    path = ROOT.joinpath(*module.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


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


def test_imports_point_down() -> None:
    """No layer imports one above it."""
    layers = names(contract("Imports point down"), "layers")
    for position, layer in enumerate(layers):
        above = {f"{PACKAGE}.{upper}" for upper in layers[:position]}
        for path in files(f"{PACKAGE}.{layer}"):
            assert not imports(path) & above, path


def test_forbidden_imports() -> None:
    """What a contract forbids a module to import, it does not import."""
    for part in PYPROJECT.split("[[tool.importlinter.contracts]]"):
        if 'type = "forbidden"' not in part:
            continue
        forbidden = names(part, "forbidden_modules")
        for module in names(part, "source_modules"):
            for path in files(module):
                bad = {i for i in imports(path) for f in forbidden if i == f or i.startswith(f"{f}.")}
                assert not bad, (path, bad)


def test_the_package_itself_only_gives_names() -> None:
    """`__init__.py` holds a docstring, imports and `__all__`, nothing else."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text("utf-8"))
    kinds = [type(node) for node in tree.body]
    assert set(kinds) <= {ast.Expr, ast.ImportFrom, ast.Assign}
    assert kinds.count(ast.Assign) == kinds.count(ast.Expr) == 1
