"""Any value becomes a plain one, and plain values survive JSON exactly."""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import os
import uuid
from collections.abc import Callable
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, SecretStr, model_serializer

from llama_index_bedrock_sessions._journal import values
from llama_index_bedrock_sessions._journal.values import Walk, from_json, to_json
from tests.support.strategies import json_values, keys, plain_values, shape


def unreadable() -> str:
    return "?"


def through_json(plain: Any, *, ascii_only: bool = True) -> Any:
    written = json.dumps(to_json(plain), allow_nan=False, ensure_ascii=ascii_only).encode()
    return from_json(json.loads(written), unreadable)


@given(plain=plain_values, ascii_only=st.booleans())
def test_plain_values_survive_json(plain: Any, ascii_only: bool) -> None:
    """from_json(to_json(v)) is v, through strict JSON in UTF-8, escaped or not."""
    assert shape(through_json(plain, ascii_only=ascii_only)) == shape(plain)


@given(plain=plain_values)
def test_plain_values_are_plain(plain: Any) -> None:
    """A plain value is its own plain form, and nothing is noted about it."""
    walk = Walk()
    assert shape(walk.plain(plain)) == shape(plain)
    assert walk.notes == []


@given(
    value=st.recursive(
        plain_values, lambda inner: st.dictionaries(st.sampled_from(["~b", "~s", "~i", "~f", "~d", "~x"]), inner)
    )
    | json_values
)
def test_any_json_is_read(value: Any) -> None:
    """Whatever JSON is given, a plain value comes back, which survives JSON."""
    plain = from_json(value, unreadable)
    assert shape(through_json(plain)) == shape(plain)


@pytest.mark.parametrize("bits", [53, 63, 64, 65, 16_000])
def test_integers_are_exact(bits: int) -> None:
    """Integers are exact beyond 2**53, and beyond the 4,300 digits CPython writes."""
    for value in (2**bits - 1, 2**bits, -(2**bits)):
        assert through_json({"a": [value]}) == {"a": [value]}


@pytest.mark.parametrize(
    "value",
    [
        {"~b": 5},
        {"~b": "?"},
        {"~s": "gIA="},
        {"~i": "five"},
        {"~f": []},
        {"~f": "1.5"},
        {"~d": [[]]},
        {"~d": "ab"},
        {"~later": 1},
        (1, 2),
        object(),
    ],
)
def test_what_is_no_form_is_replaced(value: Any) -> None:
    """What is damaged, hostile or of a later release costs only itself."""
    assert from_json([1, value, {"a": value}], unreadable) == [1, "?", {"a": "?"}]


@pytest.mark.parametrize(
    "wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: {"~d": [["~b", inner]]}]
)
def test_levels_are_counted_alike(wrap: Callable[[Any], Any]) -> None:
    """A hundred levels are read as they were written; what is deeper is replaced, without recursing into it."""
    kept: Any = "x"
    for _ in range(values.MAX_DEPTH):
        kept = wrap(kept)
    assert "?" not in repr(from_json(kept, unreadable))
    deep = kept
    for _ in range(100_000):
        deep = wrap(deep)
    assert "?" in repr(from_json(deep, unreadable))


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Word(str):
    __slots__ = ()


class Count(int):
    pass


class Price(float):
    pass


class Blob(bytes):
    pass


class Model(BaseModel):
    name: str
    key: SecretStr = SecretStr("hidden")
    left_out: str = Field(default="hidden", exclude=True)
    at: dt.date = dt.date(2026, 1, 2)


class BytesModel(BaseModel):
    data: bytes


class BrokenModel(BaseModel):
    @model_serializer
    def refuse(self) -> dict[str, Any]:
        raise RuntimeError

    def __repr__(self) -> str:
        return "BrokenModel()"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError


class Nothing(collections.UserDict[Any, Any]):
    pass


NAME = os.fsdecode(b"caf\xe9")

NORMALISED: list[tuple[Any, Any]] = [
    ((1, (2,)), [1, [2]]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset({"b", "a"}), ["a", "b"]),
    ({None}, [None]),
    ({(2, 1), (1,)}, [[1], [2, 1]]),
    (collections.deque([1]), [1]),
    (range(2), [0, 1]),
    (collections.OrderedDict(a=(1,)), {"a": [1]}),
    (Nothing(a=1), {"a": 1}),
    (bytearray(b"\xff"), b"\xff"),
    (memoryview(b"\xff"), b"\xff"),
    (Blob(b"\xff"), b"\xff"),
    (BytesIO(b"\xff"), b"\xff"),
    (StringIO("é"), "é".encode()),
    (Word("w"), "w"),
    (Count(2), 2),
    (Price(2.5), 2.5),
    (Colour.RED, "red"),
    (Colour.PAIR, [1, 2]),
    (Level.HIGH, 3),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), "2026-01-02T03:00:00Z"),
    (dt.timedelta(days=1), "P1D"),
    (decimal.Decimal("1.50"), "1.50"),
    (AnyUrl("https://example.com"), "https://example.com/"),
    (Path("a/b"), str(Path("a/b"))),
    (PurePosixPath(NAME), NAME),
    (Model(name="n"), {"name": "n", "key": "**********", "at": "2026-01-02"}),
    (BytesModel(data=b"\xff"), {"data": b"\xff"}),
    (Point(1, (2,)), {"x": 1, "y": [2]}),
    (np.float32(0.5), 0.5),
    (np.int64(5), 5),
    (np.bool_(True), True),
    (np.array([[1, 2]]), [[1, 2]]),
    (array.array("i", [1]), [1]),
    ({None: "b", True: "c", 2.5: "d"}, {"true": "c", "null": "b", "2.5": "d"}),
    ({False: 0, 7: 1}, {"false": 0, "7": 1}),
    ({float("nan"): 1, 10**400: 2}, {"NaN": 1, "1" + 400 * "0": 2}),
    ({2**16000: 1}, {"0x1" + 4000 * "0": 1}),
    ({Word("w"): 1, Colour.RED: 2, Level.HIGH: 3}, {"w": 1, "red": 2, "3": 3}),
    ({uuid.UUID(int=1): 1}, {"00000000-0000-0000-0000-000000000001": 1}),
    ({(1, 2): 1, b"b": 2}, {"(1, 2)": 1, "b'b'": 2}),
]


@pytest.mark.parametrize(("value", "plain"), NORMALISED, ids=lambda value: type(value).__name__)
def test_values_become_plain(value: Any, plain: Any) -> None:
    """Each kind of value becomes what the docstring of `blocks` says, quietly, and then stays so."""
    walk = Walk()
    assert shape(walk.plain([value])) == shape([plain])
    assert walk.notes == []
    assert shape(Walk().plain(plain)) == shape(plain)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Opaque(), "<opaque>"),
        (Silent(), "[an object of type Silent]"),
        (BrokenModel(), "BrokenModel()"),
        (int, "<class 'int'>"),
        (Point, repr(Point)),
        (np.datetime64("2026-01-02T03:04:05.000000001"), 1767323045000000001),
    ],
)
def test_other_objects_become_their_repr(value: Any, plain: Any) -> None:
    """What there is no rule for is shown as its repr, and noted by its type."""
    walk = Walk()
    assert walk.plain({"a": value, "b": 1}) == {"a": plain, "b": 1}
    assert walk.notes == ([f"an object of type {type(value).__name__} became its repr"] if type(plain) is str else [])


def test_parts_of_dataclasses_are_kept() -> None:
    """A dataclass that pydantic cannot dump is taken field by field."""
    walk = Walk()
    assert walk.plain(Point(b"\xff", Opaque())) == {"x": b"\xff", "y": "<opaque>"}
    assert walk.notes == ["an object of type Opaque became its repr"]


def test_iterators_are_not_used_up() -> None:
    """An iterator is its repr: what it would give belongs to the caller."""
    given_iterator = iter([1, 2])
    assert "iterator" in Walk().plain(given_iterator)
    assert next(given_iterator) == 1


def test_sets_that_cannot_be_sorted_are_listed() -> None:
    """A set of values that do not compare is a list of them in the set's own order."""
    assert sorted(Walk().plain({1, "a"}), key=str) == [1, "a"]


def test_streams_that_cannot_seek_are_read_from_where_they_are() -> None:
    """A pipe is read once."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"abc")
    with os.fdopen(reading, "rb") as pipe:
        assert Walk().plain(pipe) == b"abc"


def test_what_is_not_plain_is_written_as_text() -> None:
    """`to_json` writes URLs and paths, which blocks hold, as their text."""
    assert to_json([Path("a"), AnyUrl("s3://b/c")]) == ["a", "s3://b/c"]


def test_streams_stay_where_they_were() -> None:
    """A stream is read from its start and put back, and a closed one is its repr."""
    stream = BytesIO(b"abc")
    stream.seek(2)
    assert Walk().plain(stream) == b"abc"
    assert stream.tell() == 2
    stream.close()
    assert "BytesIO" in Walk().plain(stream)


def test_keys_that_become_equal_are_noted() -> None:
    """As in JSON the last of equal keys is kept, but not in silence."""
    walk = Walk()
    assert walk.plain({1: "a", "1": "b"}) == {"1": "b"}
    assert walk.notes == ["of keys that became equal as strings the last was kept"]


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": inner}, Point])
def test_depth_is_bounded(wrap: Callable[[Any], Any]) -> None:
    """Values nested deeper than a hundred levels end in a sentence that says so, and can be written."""
    deep: Any = "x"
    for _ in range(5_000):
        deep = wrap(deep)
    walk = Walk()
    plain = walk.plain(deep)
    assert "nested too deeply" in json.dumps(to_json(plain))
    assert shape(through_json(plain)) == shape(plain) == shape(Walk().plain(plain))
    assert len(walk.notes) == 1


def test_values_may_contain_themselves() -> None:
    """Cycles through lists, dicts and models end where they meet themselves."""
    ring: list[Any] = [1]
    ring.append({"ring": ring})
    assert Walk().plain(ring) == [1, {"ring": "[left out: this value contains itself]"}]
    assert Walk().plain([ring, ring])[1] == Walk().plain(ring)


def test_few_objects_cannot_spell_endlessly_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty lists that hold the one before twice would be 2**60 values; they are cut."""
    monkeypatch.setattr(values, "_MAX_SHARED", 1_000)
    doubled: Any = []
    for _ in range(60):
        doubled = [doubled, doubled]
    walk = Walk()
    assert "shared too often" in json.dumps(walk.plain(doubled))
    assert {note for note in walk.notes if "shared too often" not in note} == set()


@given(st.dictionaries(keys, plain_values, max_size=3))
def test_nothing_is_shared(value: dict[str, Any]) -> None:
    """A plain form is made of new lists and dicts, and so is what is read."""
    one = Walk().plain({"a": value})
    one["a"]["new"] = 1
    two = from_json(form := to_json(value), unreadable)
    two["new"] = 1
    assert "new" not in value or value["new"] != 1
    assert shape(to_json(value)) == shape(form)
