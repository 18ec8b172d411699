"""What is declared: dependencies, extras, the rules of the test run."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
PACKAGE = "llama_index_bedrock_sessions"
DISTRIBUTIONS = {
    "vcr": "vcrpy",
    "llama_index": "llama-index-core",
    "llama_index_instrumentation": "llama-index-instrumentation",
    "workflows": "llama-index-workflows",
    "PIL": "pillow",
    "pydantic_core": "pydantic",
}
"""Import names that differ from the name to install; pydantic pins the one release of pydantic_core it works with."""
OPTIONAL = {"llama_index.llms.bedrock_converse"}
"""Imported only where the user asked for it and is told what to install."""


def imported(*places: Path) -> set[str]:
    """Give the distributions that files and folders of Python import, but for those needed by type checkers only."""
    found = set()
    for path in (path for place in places for path in ([place] if place.suffix == ".py" else place.rglob("*.py"))):
        for node in runtime_nodes(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            else:
                continue
            found |= {name.split(".")[0] for name in names if name not in OPTIONAL}
    found -= set(sys.stdlib_module_names) | {PACKAGE, "tests"}
    return {(DISTRIBUTIONS.get(name) or name).lower().replace("_", "-") for name in found}


def runtime_nodes(tree: ast.AST) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        nodes += [child, *runtime_nodes(child)]
    return nodes


def declared(extra: str | None) -> set[str]:
    """Give the distributions that pyproject.toml declares, for everybody or in an extra."""
    requirements = importlib.metadata.requires("llama-index-bedrock-sessions") or []
    found = set()
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        if (f'extra == "{extra}"' in marker.replace("'", '"')) if extra else "extra" not in marker:
            found.add(re.split(r"[^\w.-]", name)[0].lower())
    return found


def test_everything_the_library_imports_is_declared() -> None:
    """Each third-party import of the package is a dependency, or in the `cli` extra; nothing else is declared."""
    wanted = imported(ROOT / PACKAGE) - {"pytest"}
    assert wanted == declared(None) | declared("cli")


def test_everything_the_tests_import_is_declared() -> None:
    """Each third-party import of tests and examples comes with the `test` extra, or with that of the benchmarks."""
    at_hand = declared(None) | declared("cli") | declared("test")
    beside = {path.stem for path in (ROOT / "examples").glob("*.py")}  # an example imports what stands beside it
    tests = imported(*(path for path in (ROOT / "tests").iterdir() if path.name != "benchmarks"))
    assert (tests | imported(ROOT / "examples") - beside) - at_hand == set()
    assert imported(ROOT / "tests" / "benchmarks") - at_hand - declared("benchmark") == set()


def test_the_package_is_typed() -> None:
    """Type checkers are told that the package has types."""
    assert (ROOT / PACKAGE / "py.typed").exists()


@pytest.mark.parametrize(
    ("ci", "reason", "outcome"),
    [
        ("true", "redis-server is not installed", "failed"),
        ("true", "needs an AWS account: set AWS_PROFILE", "skipped"),
        ("", "redis-server is not installed", "skipped"),
    ],
)
def test_in_ci_a_skip_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, reason: str, outcome: str
) -> None:
    """With CI=true a skip fails unless its reason is allowed, in a test as well as in a whole module."""
    monkeypatch.setenv("CI", ci)
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    pytester.makepyfile(
        test_one=f"import pytest\ndef test_one():\n    pytest.skip({reason!r})",
        test_all=f"import pytest\npytest.skip({reason!r}, allow_module_level=True)",
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    expected = {"failed": {"failed": 1, "errors": 1}, "skipped": {"skipped": 2}}[outcome]
    # A module that fails to be collected stops the run before its tests, unless told to go on.
    if outcome == "failed":
        result = pytester.runpytest_subprocess("-p", "no:randomly", "--continue-on-collection-errors")
    result.assert_outcomes(**expected)
