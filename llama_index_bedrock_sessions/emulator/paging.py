"""Pages of a list, and the opaque tokens that lead to the next one.

A token names the place after which to go on, so that what is added or deleted meanwhile neither repeats nor hides an
entry. It is bound to its query and signed with a key of the file: any other is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from llama_index_bedrock_sessions.emulator.behaviour import Behaviour

_LIFETIME = 24 * 3600 * 1_000_000  # microseconds until a token is stale; AWS states none
_MAC = 16  # bytes


class TokenError(Exception):
    """A nextToken that this query did not give, or gave too long ago."""


@dataclass(frozen=True)
class Order:
    """A total order by SQL expressions, all in one direction."""

    by: tuple[str, ...]
    descending: bool = True

    def after(self) -> str:
        """Return the SQL condition for what comes after a place."""
        return f"({', '.join(self.by)}) {'<' if self.descending else '>'} ({', '.join('?' * len(self.by))})"

    def sql(self) -> str:
        """Return the SQL terms to order by."""
        return ", ".join(f"{term} {'DESC' if self.descending else 'ASC'}" for term in self.by)


def next_page(
    db: sqlite3.Connection,
    table: str,
    where: str,
    values: list[Any],
    *,
    order: Order,
    behaviour: Behaviour,
    params: dict[str, Any],
    now: int,
    query: str,
) -> tuple[list[sqlite3.Row], dict[str, str]]:
    """Return the rows of a page, and {"nextToken": ...} if there is more, else {}.

    Raises `TokenError`. `query` says what the token belongs to.
    """
    key = db.execute("SELECT token_key FROM service").fetchone()[0]
    bound = f"{query} {order}"
    place, filled = _start(key, bound, params.get("nextToken"), now)
    if behaviour.pages == "empty" and not filled:
        return [], {"nextToken": _token(key, bound, place, now, filled=True)}
    most = min(params.get("maxResults", behaviour.default_page_size), behaviour.largest_page)
    condition, after = (f"{where} AND {order.after()}", place) if place else (where, [])
    rows = db.execute(
        f"SELECT *, {', '.join(f'{term} AS place{n}' for n, term in enumerate(order.by))} FROM {table}"  # noqa: S608
        f" WHERE {condition} ORDER BY {order.sql()} LIMIT ?",
        [*values, *after, most + 1],
    ).fetchall()
    shown = rows[: min(most, (len(rows) + 1) // 2)] if behaviour.pages == "short" else rows[:most]
    if len(shown) == len(rows):
        return shown, {}
    last = [shown[-1][f"place{n}"] for n in range(len(order.by))]
    return shown, {"nextToken": _token(key, bound, last, now, filled=False)}


def _signature(key: bytes, query: str, content: bytes) -> bytes:
    return hmac.digest(key, query.encode() + b"\0" + content, hashlib.sha256)[:_MAC]


def _token(key: bytes, query: str, place: list[Any], now: int, *, filled: bool) -> str:
    content = json.dumps([place, now, filled], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_signature(key, query, content) + content).decode()


def _start(key: bytes, query: str, token: str | None, now: int) -> tuple[list[Any], bool]:
    """Return the place after which to go on, and whether this page is to have entries where every other has none."""
    if token is None:
        return [], False
    try:
        signed = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenError("The nextToken is not valid.") from None
    content = signed[_MAC:]
    if not hmac.compare_digest(_signature(key, query, content), signed[:_MAC]):
        raise TokenError("The nextToken is not valid for this request.")
    place, issued, filled = json.loads(content)
    if now - issued > _LIFETIME:
        raise TokenError("The nextToken has expired.")
    return place, filled
