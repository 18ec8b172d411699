"""Any Python value as a plain one, and plain values as JSON.

A *plain* value is None, a bool, int, float, str or bytes, a list of plain values, or a dict of them by strings. `Walk`
makes any value plain, whatever it is; `to_json` and `from_json` are exact on plain values, though JSON has no form for
bytes, NaN, infinities, lone surrogates, and integers of every size:

    from_json(to_json(plain)) == plain        through json.dumps(allow_nan=False) as well, escaped or as UTF-8

Such values are objects of one key that begins with `~`: see `docs/format.md`, section "Values". `from_json` takes any
JSON value and never raises.
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from io import IOBase
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

JSON = Any
MAX_DEPTH = 100  # levels: json and copy.deepcopy manage several times that, on a stack that is already in use
_MAX_SHARED = 100_000  # containers met again: without containing itself, a list of 60 lists can spell 2**60 values
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stream_content(stream: Any) -> bytes:
    """Read a stream from its start and put it back where it was; one that cannot seek is read from where it is."""
    position = stream.tell() if stream.seekable() else None
    if position is not None:
        stream.seek(0)
    try:
        content = stream.read()
    finally:
        if position is not None:
            stream.seek(position)
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else bytes(content)


class Walk:
    """One walk over values that makes them plain; `notes` gathers what a reader could miss, without any content."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._parents: set[int] = set()
        self._met: set[int] = set()
        self._shared = 0

    def plain(self, value: Any) -> Any:
        """Return a value as a plain one that shares nothing mutable with it; never raises."""
        if type(value) in _SCALARS:
            return value
        key = id(value)
        if isinstance(value, (list, tuple, Mapping)) and value:
            self._shared += key in self._met
            self._met.add(key)
        if key in self._parents:
            return self._left_out("contains itself")
        if len(self._parents) >= MAX_DEPTH or self._shared > _MAX_SHARED:
            return self._left_out("is nested too deeply, or shared too often")
        self._parents.add(key)
        try:
            if type(value) is list:
                return [self.plain(item) for item in value]
            return self._object(list(value.items())) if isinstance(value, Mapping) else self._other(value)
        except Exception:  # noqa: BLE001 - serialisers and conversions of foreign objects raise what they like
            self.notes.append(f"an object of type {type(value).__name__} became its repr")
            return _repr(value)
        finally:
            self._parents.discard(key)

    def dumped(self, model: BaseModel) -> Any:
        """Return what pydantic makes of a model in its JSON mode, or in its Python mode where that raises."""
        try:
            return model.model_dump(mode="json", warnings=False)
        except Exception:  # noqa: BLE001 - bytes that are not UTF-8, lone surrogates, serialisers of other code
            return model.model_dump(warnings=False)

    def _left_out(self, reason: str) -> str:
        self.notes.append(f"a value that {reason} was left out")
        return f"[left out: this value {reason}]"

    def _object(self, items: list[tuple[Any, Any]]) -> dict[str, Any]:
        result = {self._key(key): self.plain(value) for key, value in items}
        if len(result) < len(items):
            self.notes.append("of keys that became equal as strings the last was kept")
        return result

    def _key(self, key: Any) -> str:
        if type(key) is str:
            return key
        if type(key) is int:
            return str(key) if key.bit_length() < 2048 else hex(key)  # CPython can be limited to write 640 digits
        if type(key) in {type(None), bool, float}:
            return json.dumps(key)
        plain = self.plain(key)
        return self._key(plain) if type(plain) in _SCALARS and type(plain) is not bytes else _repr(key)

    def _other(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return self.plain(value.value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, (set, frozenset)):
            return _sorted([self.plain(item) for item in value])
        if isinstance(value, (list, tuple, deque, range)):
            return [self.plain(item) for item in value]
        if isinstance(value, IOBase):
            return stream_content(value)
        if isinstance(value, PurePath):
            return str(value)  # pydantic refuses the names of files that are not Unicode
        if isinstance(value, BaseModel):
            return self.plain(self.dumped(value))
        if isinstance(listed := getattr(value, "tolist", lambda: None)(), (list, bool, int, float, str)):
            return self.plain(listed)
        if isinstance(value, Iterator):
            raise TypeError("reading an iterator would use it up")
        return self.plain(self._jsonable(value))

    def _jsonable(self, value: Any) -> Any:
        try:
            return to_jsonable_python(value)
        except ValueError:
            if is_dataclass(value) and not isinstance(value, type):
                return {field.name: getattr(value, field.name) for field in fields(value)}
            raise


def _sorted(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:
        return items


def _repr(value: Any) -> str:
    try:
        return str.__str__(repr(value))
    except Exception:  # noqa: BLE001 - the repr of other code
        return f"[an object of type {type(value).__name__}]"


def to_json(plain: Any) -> JSON:
    """Return the JSON form of a plain value; of anything else, that of its text."""
    kind = type(plain)
    if kind is str:
        return plain if is_unicode(plain) else {"~s": _base64(plain.encode("utf-8", "surrogatepass"))}
    if plain is None or kind is bool:
        return plain
    if kind is int:
        return plain if plain.bit_length() < 64 else {"~i": hex(plain)}
    if kind is float:
        return plain if math.isfinite(plain) else {"~f": str(plain)}
    if kind is bytes:
        return {"~b": _base64(plain)}
    if kind is list:
        return [to_json(item) for item in plain]
    if kind is not dict:
        return to_json(str(plain))
    if all(map(is_unicode, plain)) and not (len(plain) == 1 and next(iter(plain)).startswith("~")):
        return {key: to_json(item) for key, item in plain.items()}
    return {"~d": [[to_json(key), to_json(item)] for key, item in plain.items()]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_json(value: JSON, unreadable: Callable[[], Any], *, _depth: int = 0) -> Any:
    """Return the plain value of a JSON form, as a new object; `unreadable()` stands for each part that has none."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if _depth > MAX_DEPTH or kind not in (list, dict):
        return unreadable()
    if kind is list:
        return [from_json(item, unreadable, _depth=_depth + 1) for item in value]
    if len(value) == 1 and str(tag := next(iter(value))).startswith("~"):
        try:
            return _untagged(tag, value[tag], unreadable, _depth)
        except Exception:  # noqa: BLE001 - hostile, or the tag of a later release
            return unreadable()
    return {str(key): from_json(item, unreadable, _depth=_depth + 1) for key, item in value.items()}


def _untagged(tag: object, value: JSON, unreadable: Callable[[], Any], depth: int) -> Any:
    if tag == "~b":
        return base64.b64decode(value, validate=True)
    if tag == "~s":
        return base64.b64decode(value, validate=True).decode("utf-8", "surrogatepass")
    if tag == "~i":
        return int(value, 16)
    if tag == "~d":
        pairs = [(from_json(key, unreadable, _depth=depth + 1), item) for key, item in value]
        return {str(key): from_json(item, unreadable, _depth=depth + 1) for key, item in pairs}
    return _FLOATS[value] if tag == "~f" else unreadable()


# Made once: making one costs as much as it takes to write a small value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ASCII_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def json_size(text: str) -> int:
    """Return the bytes of a text in botocore's JSON, which escapes all that is not ASCII."""
    return len(json.dumps(text))


def dump(value: JSON) -> str:
    """Return the shortest JSON. Only lone surrogates, which UTF-8 cannot represent, are escaped."""
    text = _ENCODER.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ASCII_ENCODER.encode(value)
    return text
