"""docs/emulator.md says what the emulator has: every option, fault, order and setting, and nothing else.

`python -m tests.emulator.test_docs` writes its table of settings from `Behaviour`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llama_index_bedrock_sessions.cli.commands import emulate
from llama_index_bedrock_sessions.emulator import FAULTS, Behaviour, Emulator, behaviour
from llama_index_bedrock_sessions.emulator.control import Control

pytestmark = pytest.mark.thorough

PATH = Path(__file__).parents[2] / "docs" / "emulator.md"
BEGIN = "<!-- settings: written by python -m tests.emulator.test_docs -->\n"
END = "<!-- /settings -->"
MARKS = ("documented", "seen", "inferred", "unknown")

UNKNOWNS = {
    "a write to an ENDED session": "write_to_ended",
    "a write to an EXPIRED session": "write_to_expired",
    "UpdateSession of an ENDED or EXPIRED session": "update_when_closed",
    "DeleteSession of an ACTIVE session": "delete_active",
    "EndSession of an ENDED or EXPIRED session": "end_when_closed",
    "a known step id": "known_step_id",
    "where step ids are unique": "step_ids_unique_per",
    "the order of steps": "step_order",
    "the order of sessions": "session_order",
    "the default page size": "default_page_size",
    "short pages": "pages",
    "pages capped below maxResults": "largest_page",
    "step 1,001": "step_quota_error",
    "a step over 50 MB": "step_size_error",
    "what the 50 MB count": "step_size_counts",
    "more or larger images than documented": "image_error",
    "whether images are looked at": "image_content",
    "whether images in S3 are looked for": "image_in_s3",
    "UpdateSession's metadata": "update_metadata",
    "what resets the idle timer": "idle_timer_reset_by",
    "from when retention counts": "retention_from",
    "the precision of times": "time_precision",
    "what else answers hold": "more_members",
    "the form of error types": "error_type_header",
    "late lists of steps": "steps_listed_after_seconds",
    "late lists of sessions": "sessions_listed_after_seconds",
    "how late": "late_lists",
    "whether a put moves lastUpdatedAt": "put_moves_last_updated_at",
    "sessions of an account": "sessions_per_account",
    "invocations of a session": "invocations_per_session",
}
"""What AWS has not said, and the setting that decides it here."""


def documented_fields() -> dict[str, str]:
    """Return the docstring of each setting, which only the source has."""
    body = next(
        node
        for node in ast.parse(inspect.getsource(behaviour)).body
        if isinstance(node, ast.ClassDef) and node.name == "Behaviour"
    ).body
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def known(text: str) -> list[str]:
    return [mark for mark in MARKS if re.search(rf"\b{mark}\b", text, re.IGNORECASE)]


def table() -> str:
    """Return the table of settings."""
    choices = Behaviour.choices()
    lines = ["| setting | default, and other values | known | |", "|---|---|---|---|"]
    for name, text in documented_fields().items():
        default: Any = getattr(Behaviour(), name)
        others = [value for value in choices.get(name, ()) if value != default] or ["other numbers"]
        values = [
            f"**`{json.dumps(default)}`**",
            *(f"`{json.dumps(o)}`" if name in choices else str(o) for o in others),
        ]
        what = " ".join(text.split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {', '.join(values)} | {', '.join(known(text))} | {what} |")
    return "\n".join(lines) + "\n"


def split() -> tuple[str, str, str]:
    """Return what is before, in and after the table."""
    before, rest = PATH.read_text("utf-8").split(BEGIN)
    inside, after = rest.split(END)
    return before + BEGIN, inside, END + after


def test_every_setting_is_in_the_table() -> None:
    """The table is what `Behaviour` says of itself: every setting, its default and other values, and what is known."""
    assert split()[1] == table()
    assert list(documented_fields()) == [field.name for field in fields(Behaviour)]


@pytest.mark.parametrize("name", [field.name for field in fields(Behaviour)])
def test_a_setting_says_what_is_known(name: str) -> None:
    """Each setting is marked documented, seen, inferred or unknown, and each unknown one answers a question."""
    marks = known(documented_fields()[name])
    assert marks
    assert ("unknown" in marks or name == "error_type_header") is (name in UNKNOWNS.values())


def test_every_unknown_has_a_setting() -> None:
    """Whatever AWS has not said is decided by one setting, which has more than one value."""
    assert len(set(UNKNOWNS.values())) == len(UNKNOWNS)
    assert set(UNKNOWNS.values()) <= {field.name for field in fields(Behaviour)}
    assert {name for name in Behaviour.choices() if len(Behaviour.choices()[name]) > 1} <= set(UNKNOWNS.values())


def test_every_option_fault_and_order_is_documented() -> None:
    """The tables name the options of the command, the faults and the orders of the control endpoint: all of them."""
    text = PATH.read_text("utf-8")
    rows = re.findall(r"^\| (`.*?)  ?\|", text, re.MULTILINE)
    options = {f"`{option}`" for parameter in emulate.params for option in parameter.opts}
    assert options <= {part for row in rows for part in row.split(" |")[0].split(", ")}
    with Emulator() as emulator:
        control = Control(emulator.exchange, emulator.faults, emulator.clock, emulator.calls, emulator._store)
        orders = {f"`{method} {path}`" for method, path in (name.split() for name in control._names())}
    documented = {row.split(" |")[0] for row in rows}
    assert orders == {row for row in documented if "/__control__" in row}
    assert {f"`{fault}`" for fault in FAULTS} <= documented


def test_the_python_in_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of `Emulator` does what its comments say."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(
        r"```python\n(from llama_index_bedrock_sessions.emulator.*?)```", PATH.read_text("utf-8"), re.DOTALL
    )
    found: dict[str, Any] = {}
    exec(compile(example, str(PATH), "exec"), found)
    assert (tmp_path / "sessions.db").exists()
    assert Behaviour.from_dict(json.loads(re.findall(r"```json\n(.*?)```", PATH.read_text("utf-8"), re.DOTALL)[0]))


if __name__ == "__main__":
    before, _, after = split()
    PATH.write_text(before + table() + after, "utf-8")
