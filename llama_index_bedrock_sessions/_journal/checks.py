"""Check that stored JSON has the form it should have; raise `Damaged` if not."""

from __future__ import annotations

from llama_index_bedrock_sessions._journal.ids import STEP_ID, Home, Place
from llama_index_bedrock_sessions._journal.values import JSON


class Damaged(Exception):  # noqa: N818 - never leaves this module
    """Something stored does not have the form it should have."""


def check_home(value: JSON) -> Home:
    ids = check_list(value)
    if len(ids) < 3:
        raise Damaged("home")
    return Home(*(check_id(each) for each in ids[:3]))


def check_place(value: JSON) -> Place:
    ids = check_list(value)
    if len(ids) < 2:
        raise Damaged("place")
    return check_id(ids[0]), check_id(ids[1])


def check_id(value: JSON) -> str:
    """Return an id that the service can be asked for."""
    if not isinstance(value, str) or not STEP_ID.fullmatch(value):
        raise Damaged("not an id")
    return value


def check_time(value: JSON) -> int:
    if not isinstance(value, int) or not YEARS[0] <= value <= YEARS[1]:
        raise Damaged("not a time")
    return value


def is_natural(value: JSON) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_integer(value: JSON) -> int:
    if not is_natural(value):
        raise Damaged("not a whole number")
    return int(value)


def check_string(value: JSON) -> str:
    if not isinstance(value, str):
        raise Damaged("not a string")
    return value


def check_list(value: JSON) -> list[JSON]:
    if not isinstance(value, list):
        raise Damaged("not a list")
    return value


def check_object(value: JSON) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise Damaged("not an object")
    return value


YEARS = (-62_135_596_800_000, 253_402_300_799_999)
"""The ms that a foreign step can have as its time: the years 1 to 9999."""
