"""The shapes of the service model, compiled: what a request may hold, and what an answer must look like.

Law: every constraint the model states is checked, in both directions, by the same compiled checks. A request that
breaks one becomes a message in the words AWS uses; an answer of our own that breaks one is a bug (`AnswerError`).

Native values are JSON's, except that a blob is `bytes` and a timestamp the whole microseconds since 1970 in UTC.
Members that the model does not know, and members that are null, are ignored, as rest-json services do.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    #: Turns JSON into a native value; appends to the list what is wrong with it, and returns None then.
    Reader = Callable[[Any, str, list[str]], Any]
    #: Turns a native value into JSON; the last argument renders timestamps.
    Writer = Callable[[Any, str, Callable[[int], str]], Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_ECHO = 256  # characters of a refused value that its message repeats


class AnswerError(Exception):
    """The emulator made an answer that breaks the service model: a bug of the emulator."""


def parse_time(text: str) -> int | None:
    """Return the microseconds since 1970 of an ISO 8601 time with a zone, or None if it is not one."""
    found = _TIME.fullmatch(text)
    if not found:
        return None
    *numbers, fraction, sign, hours, minutes = found.groups()
    try:
        moment = datetime(*(int(number) for number in numbers), tzinfo=UTC)  # type: ignore[arg-type,misc]
    except ValueError:
        return None
    zone = timedelta(hours=int(hours), minutes=int(minutes)) if sign else timedelta(0)
    whole = (moment - EPOCH - (zone if sign == "+" else -zone)) // _MICROSECOND
    return whole + int((fraction or "").ljust(6, "0")[:6])


def reader(shape: Any, *, secret: bool = False) -> Reader:
    """Compile what reads and checks a value of this shape. `secret`: messages do not repeat the value."""
    kinds: dict[str, Callable[[Any, bool], Reader]] = {
        "structure": _structure_reader,
        "list": _list_reader,
        "map": _map_reader,
        "string": _string_reader,
        "integer": _integer_reader,
        "timestamp": _timestamp_reader,
        "blob": _blob_reader,
    }
    if shape.type_name not in kinds:  # session management has no other; a later model may
        return lambda value, _path, _faults: value
    return kinds[shape.type_name](shape, secret or bool(shape.metadata.get("sensitive")))


def _said(value: object, path: str, constraint: str, *, secret: bool = False) -> str:
    echo = "" if secret else f" {'null' if value is None else repr(str(value)[:_ECHO])}"
    return f"Value{echo} at {path!r} failed to satisfy constraint: {constraint}"


def _length_checks(shape: Any) -> Callable[[Any], list[str]]:
    lowest, highest = shape.metadata.get("min"), shape.metadata.get("max")

    def checks(value: Any) -> list[str]:
        broken = []
        if lowest is not None and len(value) < lowest:
            broken.append(f"Member must have length greater than or equal to {lowest}")
        if highest is not None and len(value) > highest:
            broken.append(f"Member must have length less than or equal to {highest}")
        return broken

    return checks


def _string_checks(shape: Any) -> Callable[[str], list[str]]:
    lengths = _length_checks(shape)
    pattern, enum = shape.metadata.get("pattern"), shape.metadata.get("enum")
    # A whole match, so that `^(a)|(b)$` means what its author meant, and `$` does not let a newline pass.
    matches = re.compile(pattern, re.ASCII).fullmatch if pattern and pattern != r"^[\s\S]*$" else None

    def checks(value: str) -> list[str]:
        broken = lengths(value)
        if matches and not matches(value):
            broken.append(f"Member must satisfy regular expression pattern: {pattern}")
        if enum and value not in enum:
            broken.append(f"Member must satisfy enum value set: [{', '.join(enum)}]")
        if not value.isascii() and not _is_unicode(value):
            broken.append("Member must be valid Unicode")
        return broken

    return checks


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape and UTF-8 cannot hold
        return False
    return True


def _string_reader(shape: Any, secret: bool) -> Reader:
    checks = _string_checks(shape)

    def read(value: Any, path: str, faults: list[str]) -> str | None:
        if not isinstance(value, str):
            faults.append(_said(value, path, "Member must be of type string", secret=secret))
            return None
        faults.extend(_said(value, path, broken, secret=secret) for broken in checks(value))
        return value

    return read


def _integer_reader(shape: Any, secret: bool) -> Reader:
    lowest, highest = shape.metadata.get("min"), shape.metadata.get("max")

    def read(value: Any, path: str, faults: list[str]) -> int | None:
        if not isinstance(value, int) or isinstance(value, bool):
            faults.append(_said(value, path, "Member must be of type integer", secret=secret))
            return None
        if lowest is not None and value < lowest:
            faults.append(_said(value, path, f"Member must have value greater than or equal to {lowest}"))
        if highest is not None and value > highest:
            faults.append(_said(value, path, f"Member must have value less than or equal to {highest}"))
        return value

    return read


def _timestamp_reader(_shape: Any, secret: bool) -> Reader:
    def read(value: Any, path: str, faults: list[str]) -> int | None:
        moment = parse_time(value) if isinstance(value, str) else None
        if moment is None:
            faults.append(_said(value, path, "Member must be a timestamp in ISO 8601 format", secret=secret))
        return moment

    return read


def _blob_reader(shape: Any, _secret: bool) -> Reader:
    checks = _length_checks(shape)

    def read(value: Any, path: str, faults: list[str]) -> bytes | None:
        try:
            content = base64.b64decode(value, validate=True) if isinstance(value, str) else None
        except (binascii.Error, ValueError):
            content = None
        if content is None:
            faults.append(_said(value, path, "Member must be a base64 encoded blob", secret=True))
            return None
        faults.extend(_said(value, path, broken, secret=True) for broken in checks(content))
        return content

    return read


def _list_reader(shape: Any, secret: bool) -> Reader:
    checks, member = _length_checks(shape), reader(shape.member, secret=secret)

    def read(value: Any, path: str, faults: list[str]) -> list[Any] | None:
        if not isinstance(value, list):
            faults.append(_said(value, path, "Member must be of type list", secret=secret))
            return None
        faults.extend(_said(value, path, broken, secret=True) for broken in checks(value))
        content = []
        for index, item in enumerate(value, start=1):
            if item is None:
                faults.append(_said(None, f"{path}.{index}.member", "Member must not be null"))
            else:
                content.append(member(item, f"{path}.{index}.member", faults))
        return content

    return read


def _map_reader(shape: Any, secret: bool) -> Reader:
    checks, keys, values = _length_checks(shape), _string_checks(shape.key), reader(shape.value, secret=secret)

    def read(value: Any, path: str, faults: list[str]) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            faults.append(_said(value, path, "Member must be of type map", secret=secret))
            return None
        faults.extend(_said(value, path, broken, secret=True) for broken in checks(value))
        content = {}
        for key, item in value.items():
            broken = keys(key)
            if broken:
                faults.append(_said(key, path, f"Map keys must satisfy constraint: [{', '.join(broken)}]"))
            if item is None:
                faults.append(_said(None, f"{path}.{key[:_ECHO]}.member", "Member must not be null"))
            else:
                content[key] = values(item, f"{path}.{key[:_ECHO]}.member", faults)
        return content

    return read


def _structure_reader(shape: Any, secret: bool) -> Reader:
    members = {name: reader(member, secret=secret) for name, member in shape.members.items()}
    required = shape.required_members
    union = bool(shape.metadata.get("union"))

    def read(value: Any, path: str, faults: list[str]) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            faults.append(_said(value, path, "Member must be of type structure", secret=secret))
            return None
        inside = f"{path}." if path else ""
        faults.extend(
            _said(None, inside + name, "Member must not be null") for name in required if value.get(name) is None
        )
        content = {
            name: read_member(value[name], inside + name, faults)
            for name, read_member in members.items()
            if value.get(name) is not None
        }
        if union and len(content) != 1:
            constraint = f"Exactly one member must be set: [{', '.join(members)}]"
            faults.append(_said(value, path, constraint, secret=True))
        return content

    return read


def writer(shape: Any) -> Writer:
    """Compile what checks a native value against this shape and renders it. It raises `AnswerError`."""
    kinds: dict[str, Callable[[Any], Writer]] = {
        "structure": _structure_writer,
        "list": _list_writer,
        "map": _map_writer,
        "string": _string_writer,
        "timestamp": lambda _shape: _write_timestamp,
        "blob": _blob_writer,
    }
    if shape.type_name not in kinds:
        return lambda value, _path, _stamp: value
    return kinds[shape.type_name](shape)


def _refuse(path: str, broken: list[str]) -> None:
    if broken:
        raise AnswerError(f"{path}: {'; '.join(broken)}")


def _typed(value: Any, kind: type, path: str) -> Any:
    if not isinstance(value, kind):
        raise AnswerError(f"{path}: {type(value).__name__} is not {kind.__name__}")
    return value


def _string_writer(shape: Any) -> Writer:
    checks = _string_checks(shape)

    def write(value: Any, path: str, _stamp: Callable[[int], str]) -> str:
        _refuse(path, checks(_typed(value, str, path)))
        return str(value)

    return write


def _write_timestamp(value: Any, path: str, stamp: Callable[[int], str]) -> str:
    rendered = stamp(_typed(value, int, path))
    if not _TIME.fullmatch(rendered):
        raise AnswerError(f"{path}: {rendered} is not ISO 8601")
    return rendered


def _blob_writer(shape: Any) -> Writer:
    checks = _length_checks(shape)

    def write(value: Any, path: str, _stamp: Callable[[int], str]) -> str:
        _refuse(path, checks(_typed(value, bytes, path)))
        return base64.b64encode(value).decode()

    return write


def _list_writer(shape: Any) -> Writer:
    checks, member = _length_checks(shape), writer(shape.member)

    def write(value: Any, path: str, stamp: Callable[[int], str]) -> list[Any]:
        _refuse(path, checks(_typed(value, list, path)))
        return [member(item, path, stamp) for item in value]

    return write


def _map_writer(shape: Any) -> Writer:
    checks, keys, values = _length_checks(shape), _string_checks(shape.key), writer(shape.value)

    def write(value: Any, path: str, stamp: Callable[[int], str]) -> dict[str, Any]:
        _refuse(path, checks(_typed(value, dict, path)))
        for key in value:
            _refuse(path, keys(key))
        return {key: values(item, f"{path}.{key}", stamp) for key, item in value.items()}

    return write


def _structure_writer(shape: Any) -> Writer:
    members = {name: writer(member) for name, member in shape.members.items()}
    required = frozenset(shape.required_members)
    union = bool(shape.metadata.get("union"))

    def write(value: Any, path: str, stamp: Callable[[int], str]) -> dict[str, Any]:
        _typed(value, dict, path)
        if not required <= value.keys() <= members.keys():
            raise AnswerError(f"{path}: has {sorted(value)}, needs {sorted(required)}, knows {sorted(members)}")
        if union and len(value) != 1:
            raise AnswerError(f"{path}: a union has one member, not {sorted(value)}")
        return {name: members[name](item, name, stamp) for name, item in value.items()}

    return write
