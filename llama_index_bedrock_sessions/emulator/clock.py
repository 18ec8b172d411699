"""The emulator's clock: an hour or thirty days pass when a test says so.

Its offset lives in the database file, so that every process on the file, and every later one, agrees on the time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from llama_index_bedrock_sessions.emulator.shapes import EPOCH

if TYPE_CHECKING:
    import sqlite3

    from llama_index_bedrock_sessions.emulator.database import Database

_LAST = (datetime(9001, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
_READ = "SELECT clock_offset, clock_stopped FROM service"


def microseconds(moment: datetime) -> int:
    """Return whole microseconds since 1970 in UTC. Raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    return (moment - EPOCH) // timedelta(microseconds=1)


def read_clock(connection: sqlite3.Connection) -> int:
    """Return the emulator's time in microseconds since 1970."""
    offset, stopped = connection.execute(_READ).fetchone()
    return int(stopped) if stopped is not None else time.time_ns() // 1000 + int(offset)


class Clock:
    """The time of the emulated service: the machine's, moved by what tests asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the service's time, with microseconds, in UTC."""
        with self._database.reading() as connection:
            return EPOCH + timedelta(microseconds=read_clock(connection))

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError for a negative number (time does not go back) and beyond the year 9000."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds}")
        passed = round(seconds * 1_000_000)
        with self._database.writing() as connection:
            if read_clock(connection) + passed > _LAST:
                raise ValueError(f"time ends with the year 9000: {seconds}")
            connection.execute(
                "UPDATE service SET clock_offset = clock_offset + ?, clock_stopped = clock_stopped + ?",
                (passed, passed),
            )

    def stop(self, at: datetime | None = None) -> None:
        """Stop the clock at a time (with a zone; None: now), for reproducible tests: only `advance` moves it then."""
        with self._database.writing() as connection:
            moment = read_clock(connection) if at is None else microseconds(at)
            connection.execute("UPDATE service SET clock_stopped = ?", (moment,))

    def start(self) -> None:
        """Let a stopped clock run again, from the time it shows."""
        with self._database.writing() as connection:
            offset = read_clock(connection) - time.time_ns() // 1000
            connection.execute("UPDATE service SET clock_offset = ?, clock_stopped = NULL", (offset,))


def http_date(moment: int) -> str:
    """Return microseconds since 1970 as the value of a `Date` header."""
    day = datetime.fromtimestamp(moment // 1_000_000, tz=UTC)
    weekday = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[day.weekday()]
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    return f"{weekday}, {day:%d} {months[day.month - 1]} {day:%Y %H:%M:%S} GMT"
