"""References inside records and values: to native content blocks, and to texts in other steps."""

from __future__ import annotations

from collections.abc import Iterator

from llama_index_bedrock_sessions._journal.checks import Damaged, check_home, check_integer, check_list, is_natural
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions._journal.values import JSON

PARTS = "~parts"
"""The only member of a value of the named state that is the text of native blocks: `values.py` writes no such value."""


def parts(value: JSON) -> list[tuple[Home, int]]:
    """Return the (home, block position)s that a value of the named state is the text of, [] if it is a value itself."""
    if not isinstance(value, dict) or list(value) != [PARTS]:
        return []
    try:
        return [(check_home(item), check_integer(item[3])) for item in check_list(value[PARTS])]
    except (Damaged, IndexError):
        return []


def newest_part(value: list[JSON]) -> str:
    """Return the id of the newest step that a value of the named state refers to."""
    return max((home.step for home, _ in parts(value[0])), default="") if value else ""


def is_reference(item: JSON) -> bool:
    """Whether an item of a record stands for a native block."""
    return (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, dict) and "n" in item)


def references(record: JSON, homes: int) -> Iterator[tuple[int, int]]:
    items = record.get("b") if isinstance(record, dict) else None
    for item in items if isinstance(items, list) else ():
        if found := reference(item, homes):
            yield found


def reference(item: JSON, homes: int) -> tuple[int, int] | None:
    """Return (block position, home position) of a native block elsewhere, None for all else."""
    if not isinstance(item, dict) or "n" not in item:
        return None
    n, h = item["n"], item.get("h", 0)
    return (n, h) if is_natural(n) and is_natural(h) and h < homes else None


def without_forged(record: JSON, homes: int) -> JSON:
    """Return a record whose references all have a home: no other comes to have one when it is carried on."""

    def item(value: JSON) -> JSON:
        forged = isinstance(value, dict) and "n" in value and reference(value, homes) is None
        return {**value, "h": None} if forged else value

    items = record.get("b") if isinstance(record, dict) else None
    return {**record, "b": [item(i) for i in items]} if isinstance(items, list) else record
