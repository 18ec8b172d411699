"""References to native content blocks, in records and in named state: find, move, renumber.

No other module knows their form. An item of `record["b"]` is a reference in one of two forms:

- `n`, or `{"n": n, ...}`: block n of the step in which the record was written.
- `{"n": n, "h": h, ...}`: block n of `homes[h]` (0 without `h`), in a record that was read or is carried.

A value of the named state that is `{"~parts": [[session, invocation, step, n], ...]}` is the text of native blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeGuard

from llama_index_bedrock_sessions._journal.checks import Damaged, check_home, check_integer, check_list, is_natural
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions._journal.values import JSON

PARTS = "~parts"
"""The only member of a value of the named state that is the text of native blocks: `values.py` writes no such value."""
Reference = tuple[Home, int]
"""A step and the position of a native block in it."""


# Items


def is_record(record: JSON) -> TypeGuard[dict[str, JSON]]:
    """Whether a value has the form of a record: an object with a list of items."""
    return isinstance(record, dict) and isinstance(record.get("b"), list)


def items(record: JSON) -> list[JSON]:
    """Return the items of a record, [] if it is not one."""
    return list(record["b"]) if is_record(record) else []


def with_items(record: JSON, change: Callable[[JSON], JSON]) -> JSON:
    """Return a record with each item replaced by what `change` returns; what is not a record is returned unchanged."""
    return {**record, "b": [change(item) for item in record["b"]]} if is_record(record) else record


def is_reference(item: JSON) -> TypeGuard[dict[str, JSON]]:
    """Whether an item is a reference with members."""
    return isinstance(item, dict) and "n" in item and "block_type" not in item


def own_number(item: JSON) -> int | None:
    """Return the block of its own step that an item refers to, None if it refers to none."""
    n = item["n"] if is_reference(item) else item
    return n if type(n) is int else None


def reference(item: JSON, homes: int) -> tuple[int, int] | None:
    """Return (block position, home position) of an item that refers to one of so many homes, None for all else."""
    if not is_reference(item):
        return None
    n, h = item["n"], item.get("h", 0)
    return (n, h) if is_natural(n) and is_natural(h) and h < homes else None


def own_reference(n: int, members: Mapping[str, JSON]) -> JSON:
    """Return the item that refers to block n of its own step, with these other members."""
    return {"n": n, **members} if members else n


def home_reference(n: int) -> JSON:
    """Return the item of a record that was read that refers to block n of its first home."""
    return {"n": n}


def other_members(item: JSON) -> dict[str, JSON]:
    """Return the members of a reference besides the block and the home."""
    return {name: value for name, value in item.items() if name not in {"n", "h"}} if is_reference(item) else {}


# Records in their own step


def own_references(record: JSON) -> list[int]:
    """Return the blocks of its own step that a record refers to, in its order."""
    return [n for item in items(record) if (n := own_number(item)) is not None]


def shifted(record: JSON, by: int) -> JSON:
    """Return a record whose own references are numbered from another start."""
    return _renumbered(record, lambda n: {"n": n + by})


def located(record: JSON, positions: Sequence[tuple[int, int]]) -> JSON:
    """Return a record whose own reference n refers to block `positions[n][1]` of home `positions[n][0]`."""
    return _renumbered(record, lambda n: {"n": positions[n][1], "h": positions[n][0]})


def _renumbered(record: JSON, number: Callable[[int], dict[str, JSON]]) -> JSON:
    def change(item: JSON) -> JSON:
        if (n := own_number(item)) is None:
            return item
        members = {**(item if isinstance(item, dict) else {}), **number(n)}
        return members["n"] if members.keys() == {"n"} else members

    return with_items(record, change)


# Records that were read


def references(record: JSON, homes: Sequence[Home]) -> Iterator[Reference]:
    """Yield the native blocks that a record refers to."""
    for item in items(record):
        if found := reference(item, len(homes)):
            yield homes[found[1]], found[0]


def relocated(
    record: JSON, homes: Sequence[Home], moves: Mapping[Reference, Reference]
) -> tuple[JSON, tuple[Home, ...]]:
    """Return a record that refers to the blocks that `moves` maps its references to, and its homes."""
    numbers: dict[Home, int] = {}

    def change(item: JSON) -> JSON:
        if (found := reference(item, len(homes))) is None:
            return item
        before = homes[found[1]], found[0]
        home, n = moves.get(before, before)
        return {**item, "n": n, "h": numbers.setdefault(home, len(numbers))}

    return with_items(record, change), tuple(numbers)


def with_homes(record: JSON, homes: Sequence[Home], numbers: dict[Home, int]) -> JSON:
    """Return a record as another step carries it: its homes are numbered by `numbers`, where new ones are added."""

    def change(item: JSON) -> JSON:
        if (found := reference(item, len(homes))) is None:
            return item
        number = numbers.setdefault(homes[found[1]], len(numbers))
        rest = {name: value for name, value in item.items() if name != "h"}
        return {**rest, "h": number} if number else rest

    return with_items(record, change) if homes else record


def without_forged(record: JSON, homes: int) -> JSON:
    """Return a record whose references all have a home: a forged one does not get one when the record is carried."""

    def change(item: JSON) -> JSON:
        return {**item, "h": None} if is_reference(item) and reference(item, homes) is None else item

    return with_items(record, change)


# Named state


def text_references(value: JSON) -> list[Reference]:
    """Return the native blocks whose text a value of the named state is, [] if it is a value itself."""
    if not isinstance(value, dict) or list(value) != [PARTS]:
        return []
    try:
        return [(check_home(item), check_integer(item[3])) for item in check_list(value[PARTS])]
    except (Damaged, IndexError):
        return []


def text_value(found: Iterable[Reference]) -> JSON:
    """Return the value of the named state that is the text of native blocks."""
    return {PARTS: [[*home, n] for home, n in found]}


def newest_text_step(value: list[JSON]) -> str:
    """Return the id of the newest step that a value of the named state refers to, "" if it refers to none."""
    return max((home.step for home, _ in text_references(value[0])), default="") if value else ""
