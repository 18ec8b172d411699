"""The rules of Amazon Bedrock sessions over SQLite: one method per operation.

Law: nothing here knows HTTP or JSON on a wire. A method takes the checked parameters of its operation as native
values (`shapes`), works in one transaction, and returns the members of the answer or raises `Refusal` with one of the
errors the service model names. What AWS leaves open is asked of `Behaviour`, nowhere decided here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index_bedrock_sessions.emulator.clock import read_clock
from llama_index_bedrock_sessions.emulator.images import size_in_pixels
from llama_index_bedrock_sessions.emulator.paging import Order, next_page

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from llama_index_bedrock_sessions.emulator.behaviour import Behaviour
    from llama_index_bedrock_sessions.emulator.database import Database

ACCOUNT = "123456789012"
_SECOND = 1_000_000  # microseconds
_IDLE = 3600 * _SECOND  # Bedrock user guide, quotas: idle session timeout 1 hour
_RETENTION = 30 * 24 * 3600 * _SECOND  # Bedrock user guide: sessions are deleted after 30 days
_METADATA_ENTRIES = 50
_TAGS = 200
_NEVER = 1e12  # seconds; after the year 9000, where the clock ends, and small enough for SQLite's integers

_STEP_ORDERS = {
    "time": Order(("invocation_step_time", "arrival")),
    "arrival": Order(("arrival",)),
    "ascending": Order(("invocation_step_time", "arrival"), descending=False),
    "id": Order(("invocation_step_id",)),
    "shuffled": Order(("substr(invocation_id, 20)", "invocation_step_time", "arrival")),
}
_SESSION_ORDERS = {
    "newest": Order(("arrival",)),
    "oldest": Order(("arrival",), descending=False),
    "id": Order(("session_id",)),
}


class Refusal(Exception):  # noqa: N818 - an answer of the service, not a fault of the emulator
    """The service refuses: `kind` is an error of the service model, or an HTTP status without one, such as "413"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _View:
    """One transaction: its connection, its time, and which sessions have not reached the end of retention."""

    db: sqlite3.Connection
    now: int
    retained: str  # an SQL condition; "1" if everything is kept for ever
    overdue: str  # its opposite, in a form that an index serves


class Store:
    """The sessions of one account and region in a database. Thread-safe; behaviour may be replaced at any time."""

    def __init__(self, database: Database, region_name: str, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self._database = database
        self._region = region_name
        self._arn_prefix = f"arn:{_partition(region_name)}:bedrock:{region_name}:{ACCOUNT}:session/"

    def retention(self, wanted: bool | None) -> bool:
        """Return whether the file deletes sessions after 30 days, after changing that unless `wanted` is None."""
        with self._view(write=True) as view:
            if wanted is not None:
                view.db.execute("UPDATE service SET retention = ?", (int(wanted),))
            return bool(view.db.execute("SELECT retention FROM service").fetchone()[0])

    def now(self) -> int:
        """Return the service's time in microseconds since 1970."""
        with self._database.reading() as db:
            return read_clock(db)

    @contextmanager
    def _view(self, *, write: bool) -> Iterator[_View]:
        with self._database.writing() if write else self._database.reading() as db:
            view = self._at(db)
            if write:
                db.execute(f"DELETE FROM sessions WHERE {view.overdue}")  # noqa: S608 - our own column names
            yield view

    def _at(self, db: sqlite3.Connection) -> _View:
        now = read_clock(db)
        if not db.execute("SELECT retention FROM service").fetchone()[0]:
            return _View(db, now, "1", "0")
        since = "created_at" if self.behaviour.retention_from == "creation" else "last_updated_at"
        end = now - _RETENTION
        return _View(db, now, f"{since} > {end}", f"{since} <= {end}")

    def _touches(self) -> bool:
        """Whether reading writes: a read that keeps the session alive."""
        return self.behaviour.idle_timer_reset_by == "any call"

    # Finding what a request names

    def _session(self, view: _View, identifier: str) -> sqlite3.Row:
        session_id = identifier.removeprefix(self._arn_prefix)
        row: sqlite3.Row | None = view.db.execute(
            f"SELECT * FROM sessions WHERE session_id = ? AND region = ? AND {view.retained}",  # noqa: S608
            (session_id, self._region),
        ).fetchone()
        if row is None:
            raise Refusal("ResourceNotFoundException", f"Session {identifier} was not found.")
        if self._touches() and self._status(view, row) == "ACTIVE":
            view.db.execute("UPDATE sessions SET idle_since = ? WHERE arrival = ?", (view.now, row["arrival"]))
        return row

    def _status(self, view: _View, session: sqlite3.Row) -> str:
        if session["ended"]:
            return "ENDED"
        return "EXPIRED" if view.now - session["idle_since"] >= _IDLE else "ACTIVE"

    def _writable(self, view: _View, session: sqlite3.Row) -> None:
        status = self._status(view, session)
        if status == "ENDED":
            raise Refusal(self.behaviour.write_to_ended, f"Session {session['session_id']} has ended.")
        if status == "EXPIRED":
            if self.behaviour.write_to_expired != "accepted":
                raise Refusal(self.behaviour.write_to_expired, f"Session {session['session_id']} has expired.")
            view.db.execute("UPDATE sessions SET idle_since = ? WHERE arrival = ?", (view.now, session["arrival"]))

    def _written(self, view: _View, session: sqlite3.Row, *, moves: bool, steps: int = 0) -> None:
        """Record on the session that something was added to it."""
        resets = self.behaviour.idle_timer_reset_by != "nothing"
        view.db.execute(
            "UPDATE sessions SET step_count = step_count + ?, last_updated_at = iif(?, ?, last_updated_at),"
            " idle_since = iif(?, ?, idle_since) WHERE arrival = ?",
            (steps, moves, view.now, resets, view.now, session["arrival"]),
        )

    def _invocation(self, view: _View, session: sqlite3.Row, invocation_id: str) -> None:
        known = view.db.execute(
            "SELECT 1 FROM invocations WHERE session = ? AND invocation_id = ?", (session["arrival"], invocation_id)
        ).fetchone()
        if known is None:
            raise Refusal("ResourceNotFoundException", f"Invocation {invocation_id} was not found.")

    def _described(self, view: _View, session: sqlite3.Row) -> dict[str, Any]:
        return {
            "sessionId": session["session_id"],
            "sessionArn": self._arn_prefix + session["session_id"],
            "sessionStatus": self._status(view, session),
            "createdAt": session["created_at"],
            "lastUpdatedAt": session["last_updated_at"],
        }

    # Sessions

    def create_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """Create a session under a random id."""
        session_id = str(uuid.uuid4())
        metadata = params.get("sessionMetadata")
        with self._view(write=True) as view:
            self._room_for_session(view)
            cursor = view.db.execute(
                "INSERT INTO sessions (region, session_id, created_at, last_updated_at, idle_since,"
                " encryption_key_arn, metadata) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(self._region, session_id, view.now, view.now, view.now, params.get("encryptionKeyArn")),
                    None if metadata is None else json.dumps(metadata),
                ),
            )
            self._list_later(view, "sessions", cursor.lastrowid, self.behaviour.sessions_listed_after_seconds)
            view.db.executemany(
                "INSERT INTO tags VALUES (?, ?, ?)",
                [(cursor.lastrowid, key, value) for key, value in params.get("tags", {}).items()],
            )
            return {
                "sessionId": session_id,
                "sessionArn": self._arn_prefix + session_id,
                "sessionStatus": "ACTIVE",
                "createdAt": view.now,
            }

    def _room_for_session(self, view: _View) -> None:
        most = self.behaviour.sessions_per_account
        if most is None:
            return
        count = view.db.execute("SELECT count(*) FROM sessions WHERE region = ?", (self._region,)).fetchone()[0]
        if count >= most:
            raise Refusal("ServiceQuotaExceededException", f"The account has reached its limit of {most} sessions.")

    def get_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """Describe a session."""
        with self._view(write=self._touches()) as view:
            session = self._session(view, params["sessionIdentifier"])
            answer = self._described(view, session)
            if session["encryption_key_arn"] is not None:
                answer["encryptionKeyArn"] = session["encryption_key_arn"]
            if session["metadata"] is not None:
                answer["sessionMetadata"] = json.loads(session["metadata"])
            return answer

    def update_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """Replace, or merge, a session's metadata."""
        with self._view(write=True) as view:
            session = self._session(view, params["sessionIdentifier"])
            open_to_all = self.behaviour.update_when_closed == "accepted"
            if not open_to_all:
                self._writable(view, session)
            metadata = params.get("sessionMetadata")
            if metadata is not None:
                if self.behaviour.update_metadata == "merge":
                    metadata = {**json.loads(session["metadata"] or "{}"), **metadata}
                if len(metadata) > _METADATA_ENTRIES:
                    raise Refusal("ValidationException", f"A session takes {_METADATA_ENTRIES} metadata entries.")
                view.db.execute(
                    "UPDATE sessions SET metadata = ? WHERE arrival = ?", (json.dumps(metadata), session["arrival"])
                )
            if self._status(view, session) == "ACTIVE" or not open_to_all:
                self._written(view, session, moves=True)
            else:
                self._moved(view, session)
            return self._described(view, self._session(view, params["sessionIdentifier"]))

    def _moved(self, view: _View, session: sqlite3.Row) -> None:
        view.db.execute("UPDATE sessions SET last_updated_at = ? WHERE arrival = ?", (view.now, session["arrival"]))

    def end_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """End a session: its content can be read from now on, not added to."""
        with self._view(write=True) as view:
            session = self._session(view, params["sessionIdentifier"])
            status = self._status(view, session)
            if status != "ACTIVE" and self.behaviour.end_when_closed != "accepted":
                raise Refusal(self.behaviour.end_when_closed, f"Session {session['session_id']} is {status}.")
            if status != "ENDED":
                view.db.execute("UPDATE sessions SET ended = 1 WHERE arrival = ?", (session["arrival"],))
                self._moved(view, session)
            described = self._described(view, session)
            return {**{name: described[name] for name in ("sessionId", "sessionArn")}, "sessionStatus": "ENDED"}

    def delete_session(self, params: dict[str, Any]) -> dict[str, Any]:
        """Delete a session with its invocations and steps, unless it is ACTIVE."""
        with self._view(write=True) as view:
            session = self._session(view, params["sessionIdentifier"])
            if self._status(view, session) == "ACTIVE":
                message = f"Session {session['session_id']} is ACTIVE: end it before deleting it."
                raise Refusal(self.behaviour.delete_active, message)
            view.db.execute("DELETE FROM sessions WHERE arrival = ?", (session["arrival"],))
            return {}

    def list_sessions(self, params: dict[str, Any]) -> dict[str, Any]:
        """List the sessions of the account in this region, a page at a time."""
        with self._view(write=False) as view:
            listed = _listed(view, self.behaviour.sessions_listed_after_seconds)
            rows, token = next_page(
                *(view.db, "sessions", f"region = ? AND {view.retained} AND {listed}", [self._region]),
                order=_SESSION_ORDERS[self.behaviour.session_order],
                behaviour=self.behaviour,
                params=params,
                now=view.now,
                query=f"ListSessions {self._region}",
            )
            return {"sessionSummaries": [self._described(view, row) for row in rows], **token}

    # Late lists

    def _list_later(self, view: _View, table: str, arrival: int | None, seconds: float) -> None:
        """Store the time from which lists show a new entry; without one they show it always."""
        if not seconds:
            return
        late = round(min(seconds, _NEVER) * _SECOND)
        if self.behaviour.late_lists == "up to":
            # By arrival, not by id: ids are random, and a test that repeats its calls is to meet the same lists.
            late = late * int.from_bytes(hashlib.sha256(f"{table} {arrival}".encode()).digest()[:4], "big") >> 32
        view.db.execute(
            f"UPDATE {table} SET listed_from = ? WHERE arrival = ?",  # noqa: S608 - our own table names
            (view.now + late, arrival),
        )

    # Invocations and steps

    def create_invocation(self, params: dict[str, Any]) -> dict[str, Any]:
        """Create an invocation, under the caller's id or a random one."""
        invocation_id = params.get("invocationId") or str(uuid.uuid4())
        with self._view(write=True) as view:
            session = self._session(view, params["sessionIdentifier"])
            self._writable(view, session)
            self._room_for_invocation(view, session, invocation_id)
            view.db.execute(
                "INSERT INTO invocations (session, invocation_id, created_at, description) VALUES (?, ?, ?, ?)",
                (session["arrival"], invocation_id, view.now, params.get("description")),
            )
            self._written(view, session, moves=self.behaviour.put_moves_last_updated_at)
            return {"sessionId": session["session_id"], "invocationId": invocation_id, "createdAt": view.now}

    def _room_for_invocation(self, view: _View, session: sqlite3.Row, invocation_id: str) -> None:
        known = "SELECT count(*) FROM invocations WHERE session = ?"
        same = view.db.execute(f"{known} AND invocation_id = ?", (session["arrival"], invocation_id)).fetchone()[0]
        if same:
            raise Refusal("ConflictException", f"Invocation {invocation_id} already exists.")
        most = self.behaviour.invocations_per_session
        if most is not None and view.db.execute(known, (session["arrival"],)).fetchone()[0] >= most:
            raise Refusal("ServiceQuotaExceededException", f"The session has reached {most} invocations.")

    def list_invocations(self, params: dict[str, Any]) -> dict[str, Any]:
        """List a session's invocations, newest first (strongly inferred), a page at a time."""
        with self._view(write=self._touches()) as view:
            session = self._session(view, params["sessionIdentifier"])
            rows, token = next_page(
                *(view.db, "invocations", "session = ?", [session["arrival"]]),
                order=Order(("arrival",)),
                behaviour=self.behaviour,
                params=params,
                now=view.now,
                query=f"ListInvocations {session['session_id']}",
            )
            summaries = [
                {
                    "sessionId": session["session_id"],
                    "invocationId": row["invocation_id"],
                    "createdAt": row["created_at"],
                }
                for row in rows
            ]
            return {"invocationSummaries": summaries, **token}

    def check_encoded_size(self, size: int) -> None:
        """Refuse a PutInvocationStep whose request body is too large, where it is the body that counts."""
        if self.behaviour.step_size_counts == "encoded":
            self._check_size(size)

    def _check_size(self, size: int) -> None:
        if size > self.behaviour.step_bytes:
            raise Refusal(
                self.behaviour.step_size_error,
                f"The invocation step has {size} bytes, more than the limit of {self.behaviour.step_bytes}.",
            )

    def put_invocation_step(self, params: dict[str, Any]) -> dict[str, Any]:
        """Add a step to an invocation, under the caller's id or a random one."""
        self._check_payload(params["payload"])
        step_id = params.get("invocationStepId") or str(uuid.uuid4())
        payload = json.dumps(params["payload"], ensure_ascii=False, separators=(",", ":"), default=_pack)
        with self._view(write=True) as view:
            session = self._session(view, params["sessionIdentifier"])
            self._writable(view, session)
            self._invocation(view, session, params["invocationIdentifier"])
            known = self._known_step(view, session, params["invocationIdentifier"], step_id)
            if known is not None and self.behaviour.known_step_id == "ConflictException":
                raise Refusal("ConflictException", f"Invocation step {step_id} already exists.")
            if known is None:
                self._insert_step(view, session, params, step_id, payload)
            elif self.behaviour.known_step_id == "overwrite":
                self._overwrite_step(view, session, known, params, payload)
            return {"invocationStepId": step_id}

    def _check_payload(self, payload: dict[str, Any]) -> None:
        blocks = payload.get("contentBlocks", [])
        if self.behaviour.step_size_counts == "decoded":
            self._check_size(sum(_decoded_size(block) for block in blocks))
        images = [block["image"] for block in blocks if "image" in block]
        if len(images) > self.behaviour.images_per_step:
            limit = self.behaviour.images_per_step
            raise Refusal(self.behaviour.image_error, f"The step has {len(images)} images, the limit is {limit}.")
        for image in images:
            if "bytes" in image["source"]:
                self._check_image(image["format"], image["source"]["bytes"])
            elif self.behaviour.image_in_s3 != "unchecked":
                raise Refusal(self.behaviour.image_in_s3, "The image cannot be read from its s3Location.")

    def _check_image(self, image_format: str, content: bytes) -> None:
        if len(content) > self.behaviour.image_bytes:
            message = f"An image has {len(content)} bytes, the limit is {self.behaviour.image_bytes}."
            raise Refusal(self.behaviour.image_error, message)
        pixels = size_in_pixels(image_format, content)
        if pixels is None and self.behaviour.image_content == "checked":
            raise Refusal("ValidationException", f"An image is not of the format {image_format}.")
        if pixels is not None and max(pixels) > self.behaviour.image_pixels:
            message = f"An image has {pixels[0]} x {pixels[1]} pixels, the limit is {self.behaviour.image_pixels}."
            raise Refusal(self.behaviour.image_error, message)

    def _known_step(self, view: _View, session: sqlite3.Row, invocation_id: str, step_id: str) -> sqlite3.Row | None:
        where, values = "invocation_step_id = ?", [step_id]
        if self.behaviour.step_ids_unique_per != "account":
            where, values = f"{where} AND session = ?", [*values, session["arrival"]]
        if self.behaviour.step_ids_unique_per == "invocation":
            where, values = f"{where} AND invocation_id = ?", [*values, invocation_id]
        row: sqlite3.Row | None = view.db.execute(f"SELECT * FROM steps WHERE {where}", values).fetchone()  # noqa: S608
        return row

    def _insert_step(
        self, view: _View, session: sqlite3.Row, params: dict[str, Any], step_id: str, payload: str
    ) -> None:
        most = self.behaviour.steps_per_session
        if session["step_count"] >= most:
            raise Refusal(self.behaviour.step_quota_error, f"The session has reached its limit of {most} steps.")
        cursor = view.db.execute(
            "INSERT INTO steps (session, invocation_id, invocation_step_id, invocation_step_time) VALUES (?, ?, ?, ?)",
            (session["arrival"], params["invocationIdentifier"], step_id, params["invocationStepTime"]),
        )
        self._list_later(view, "steps", cursor.lastrowid, self.behaviour.steps_listed_after_seconds)
        view.db.execute("INSERT INTO payloads VALUES (?, ?)", (cursor.lastrowid, payload))
        self._written(view, session, moves=self.behaviour.put_moves_last_updated_at, steps=1)

    def _overwrite_step(
        self, view: _View, session: sqlite3.Row, known: sqlite3.Row, params: dict[str, Any], payload: str
    ) -> None:
        """Replace a step, and take it along where its id was known in another session or invocation."""
        view.db.execute("UPDATE sessions SET step_count = step_count - 1 WHERE arrival = ?", (known["session"],))
        view.db.execute(
            "UPDATE steps SET session = ?, invocation_id = ?, invocation_step_time = ? WHERE arrival = ?",
            (session["arrival"], params["invocationIdentifier"], params["invocationStepTime"], known["arrival"]),
        )
        view.db.execute("UPDATE payloads SET payload = ? WHERE step = ?", (payload, known["arrival"]))
        self._written(view, session, moves=self.behaviour.put_moves_last_updated_at, steps=1)

    def get_invocation_step(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return a step with its payload."""
        with self._view(write=self._touches()) as view:
            session = self._session(view, params["sessionIdentifier"])
            self._invocation(view, session, params["invocationIdentifier"])
            row = view.db.execute(
                "SELECT steps.*, payload FROM steps JOIN payloads ON step = arrival"
                " WHERE session = ? AND invocation_step_id = ? AND invocation_id = ?",
                (session["arrival"], params["invocationStepId"], params["invocationIdentifier"]),
            ).fetchone()
        if row is None:
            raise Refusal("ResourceNotFoundException", f"Invocation step {params['invocationStepId']} was not found.")
        payload = json.loads(row["payload"], object_hook=_unpack)
        return {"invocationStep": {**_step_summary(session, row), "payload": payload}}

    def list_invocation_steps(self, params: dict[str, Any]) -> dict[str, Any]:
        """List a session's steps without their payloads, of one invocation or all, a page at a time."""
        with self._view(write=self._touches()) as view:
            session = self._session(view, params["sessionIdentifier"])
            listed = _listed(view, self.behaviour.steps_listed_after_seconds)
            where, values = f"session = ? AND {listed}", [session["arrival"]]
            invocation_id = params.get("invocationIdentifier")
            if invocation_id is not None:
                self._invocation(view, session, invocation_id)
                where, values = f"{where} AND invocation_id = ?", [*values, invocation_id]
            rows, token = next_page(
                *(view.db, "steps", where, values),
                order=_STEP_ORDERS[self.behaviour.step_order],
                behaviour=self.behaviour,
                params=params,
                now=view.now,
                query=f"ListInvocationSteps {session['session_id']} {invocation_id}",
            )
            return {"invocationStepSummaries": [_step_summary(session, row) for row in rows], **token}

    # Tags

    def tag_resource(self, params: dict[str, Any]) -> dict[str, Any]:
        """Set tags of a session; those with the same key are replaced."""
        with self._view(write=True) as view:
            session = self._session(view, params["resourceArn"])["arrival"]
            view.db.executemany(
                "INSERT OR REPLACE INTO tags VALUES (?, ?, ?)",
                [(session, key, value) for key, value in params["tags"].items()],
            )
            if view.db.execute("SELECT count(*) FROM tags WHERE session = ?", (session,)).fetchone()[0] > _TAGS:
                raise Refusal("ServiceQuotaExceededException", f"A session takes {_TAGS} tags.")
            return {}

    def untag_resource(self, params: dict[str, Any]) -> dict[str, Any]:
        """Remove tags of a session by key; those it does not have are no error."""
        with self._view(write=True) as view:
            session = self._session(view, params["resourceArn"])["arrival"]
            view.db.executemany(
                "DELETE FROM tags WHERE session = ? AND key = ?", [(session, key) for key in params["tagKeys"]]
            )
            return {}

    def list_tags_for_resource(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return a session's tags; without any the member is absent, for the model's map has at least one."""
        with self._view(write=self._touches()) as view:
            session = self._session(view, params["resourceArn"])["arrival"]
            rows = view.db.execute("SELECT key, value FROM tags WHERE session = ? ORDER BY key", (session,)).fetchall()
            return {"tags": {row["key"]: row["value"] for row in rows}} if rows else {}


def _partition(region_name: str) -> str:
    if region_name.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region_name.startswith("us-gov-") else "aws"


def _listed(view: _View, seconds: float) -> str:
    """Return the SQL condition for the entries that a list shows; lists that are never late show all."""
    return f"listed_from <= {view.now}" if seconds else "1"


def _step_summary(session: sqlite3.Row, step: sqlite3.Row) -> dict[str, Any]:
    return {
        "sessionId": session["session_id"],
        "invocationId": step["invocation_id"],
        "invocationStepId": step["invocation_step_id"],
        "invocationStepTime": step["invocation_step_time"],
    }


def _decoded_size(block: dict[str, Any]) -> int:
    return len(block.get("text", "").encode()) + len(block.get("image", {}).get("source", {}).get("bytes", b""))


def _pack(value: Any) -> dict[str, str]:
    """Bytes inside a stored payload; no member of the model has such a name."""
    return {"$bytes": base64.b64encode(value).decode()}


def _unpack(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["$bytes"]) if "$bytes" in value else value
