"""The emulator's file: whose it is, who may share it, and that what was acknowledged is in it."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from llama_index_bedrock_sessions.emulator import (
    Behaviour,
    Emulator,
    EmulatorError,
    NewerFileError,
    NotOurFileError,
    UnusablePathError,
    database,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.thorough

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DAY = 24 * 3600


def put(client: Any, session: str, invocation: str, step: Any = None, text: str = "text") -> str:
    answer = client.put_invocation_step(
        sessionIdentifier=session,
        invocationIdentifier=invocation,
        invocationStepId=step or str(uuid.uuid4()),
        invocationStepTime=NOW,
        payload={"contentBlocks": [{"text": text}]},
    )
    return str(answer["invocationStepId"])


def begin(client: Any) -> tuple[str, str]:
    session = client.create_session()["sessionId"]
    return session, client.create_invocation(sessionIdentifier=session)["invocationId"]


def foreign_text(path: Path) -> None:
    path.write_text("These are my notes.\n" * 100)


def foreign_letter(path: Path) -> None:
    path.write_text("x")


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.commit()
    connection.close()


def foreign_database_in_wal_mode(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    foreign_database(path)


def damaged(path: Path) -> None:
    Emulator(path).close()
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes(len(content) - 100))


def cut_short(path: Path) -> None:
    Emulator(path).close()
    path.write_bytes(path.read_bytes()[:5000])


def only_a_header(path: Path) -> None:
    Emulator(path).close()
    path.write_bytes(path.read_bytes()[:90])


@pytest.mark.parametrize(
    "make",
    [
        foreign_text,
        foreign_letter,
        foreign_database,
        foreign_database_in_wal_mode,
        damaged,
        cut_short,
        only_a_header,
    ],
)
def test_a_file_that_is_not_ours_is_refused_untouched(make: Callable[[Path], None], tmp_path: Path) -> None:
    """What is no emulator's database, or a damaged one, is refused by name and stays as it is, byte for byte."""
    path = tmp_path / "file"
    make(path)
    before = path.read_bytes()
    with pytest.raises(NotOurFileError, match="file"):
        Emulator(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_foreign_database_in_use_keeps_its_locks(tmp_path: Path) -> None:
    """Refusing a database that this process has open does not drop the locks it holds."""
    path = tmp_path / "mine.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE mine (a)")
    connection.execute("BEGIN EXCLUSIVE")
    with pytest.raises(NotOurFileError):
        Emulator(path)
    script = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('SELECT * FROM mine')"
    other = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    connection.close()
    assert "database is locked" in other.stderr


@pytest.mark.parametrize("where", ["", "missing/chats.db", "file/chats.db"])
def test_a_path_that_can_hold_no_file_is_refused(where: Any, tmp_path: Path) -> None:
    """A directory, a missing parent and a file as parent are an OSError that names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UnusablePathError, match="directory") as caught:
        Emulator(tmp_path / where)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, EmulatorError)


def test_a_file_of_a_newer_release_is_refused_by_name(tmp_path: Path) -> None:
    """A format number above ours is not touched, and the message says both numbers."""
    path = tmp_path / "chats.db"
    Emulator(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(database.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(NewerFileError, match=f"format {len(database.MIGRATIONS) + 1}.*up to"):
        Emulator(path)


def test_migrations_bring_an_old_file_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an earlier format gets what was added since, and keeps what it holds; all openers race safely."""
    path = tmp_path / "chats.db"
    with Emulator(path) as old:
        session = old.client().create_session()["sessionId"]
    monkeypatch.setattr(
        database,
        "MIGRATIONS",
        (*database.MIGRATIONS, "ALTER TABLE sessions ADD COLUMN colour TEXT; UPDATE sessions SET colour = 'red'"),
    )
    with ThreadPoolExecutor(4) as pool:
        emulators = list(pool.map(lambda _: Emulator(path), range(4)))
    for emulator in emulators:
        assert emulator.client().get_session(sessionIdentifier=session)["sessionStatus"] == "ACTIVE"
        emulator.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT colour FROM sessions").fetchall() == [("red",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)
    connection.close()


def test_a_file_of_the_first_format_is_brought_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file of format 1 was to show after some lists is listed at once, and new entries may be late."""
    path = tmp_path / "chats.db"
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", database.MIGRATIONS[:1])
        old = database.Database(path)
        with old.writing() as connection:
            connection.execute(
                "INSERT INTO sessions (region, session_id, created_at, last_updated_at, idle_since, lists_to_wait)"
                " SELECT 'us-east-1', '00000000-0000-4000-8000-000000000001', now, now, now, 3"
                " FROM (SELECT strftime('%s') * 1000000 AS now)"
            )
        old.close()
    with Emulator(path, region_name="us-east-1", behaviour=Behaviour(sessions_listed_after_seconds=60)) as emulator:
        client = emulator.client()
        client.create_session()
        (listed,) = client.list_sessions()["sessionSummaries"]
        assert listed["sessionId"] == "00000000-0000-4000-8000-000000000001"


def test_a_failed_migration_leaves_the_old_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration is one transaction: after an error in the middle the file is as before."""
    path = tmp_path / "chats.db"
    Emulator(path).close()
    whole = database.MIGRATIONS
    monkeypatch.setattr(database, "MIGRATIONS", (*whole, "CREATE TABLE more (a); CREATE TABLE more (a)"))
    with pytest.raises(EmulatorError):
        Emulator(path)
    monkeypatch.setattr(database, "MIGRATIONS", whole)
    with Emulator(path) as emulator:
        assert emulator.client().list_sessions()["sessionSummaries"] == []


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a finished file cannot be linked to its name it is renamed; one that appeared meanwhile is kept."""

    def refuse(draft: Path, path: Path) -> None:
        if path.name == "taken.db":
            draft.replace(path)
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    for name in ("chats.db", "taken.db"):
        with Emulator(tmp_path / name) as emulator:
            assert emulator.client().list_sessions()["sessionSummaries"] == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["chats.db", "taken.db"]


def test_a_forgotten_emulator_is_closed(tmp_path: Path) -> None:
    """When the last reference is gone the database is closed, and its write-ahead log with it."""
    client: Any = Emulator(tmp_path / "chats.db").client()
    client.create_session()
    assert len(list(tmp_path.iterdir())) == 3
    del client
    gc.collect()
    assert [entry.name for entry in tmp_path.iterdir()] == ["chats.db"]


def test_a_file_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one emulator stored the next one on the file finds, by a relative path too."""
    monkeypatch.chdir(tmp_path)
    with Emulator("chats.db") as emulator:
        client = emulator.client()
        session, invocation = begin(client)
        step = put(client, session, invocation, text="\u4e2d\u6587")
    with Emulator(tmp_path / "chats.db") as emulator:
        assert emulator.path == str(tmp_path / "chats.db")
        answer = emulator.client().get_invocation_step(
            sessionIdentifier=session, invocationIdentifier=invocation, invocationStepId=step
        )
    assert answer["invocationStep"]["payload"] == {"contentBlocks": [{"text": "\u4e2d\u6587"}]}


def test_regions_in_one_file_are_apart(tmp_path: Path) -> None:
    """A session of one region is not found in another."""
    with Emulator(tmp_path / "chats.db") as here, Emulator(tmp_path / "chats.db", region_name="eu-west-1") as there:
        session = here.client().create_session()["sessionId"]
        assert there.client().list_sessions()["sessionSummaries"] == []
        with pytest.raises(ClientError, match="ResourceNotFound"):
            there.client().get_session(sessionIdentifier=session)


def test_retention_is_the_file_s(tmp_path: Path) -> None:
    """Whoever creates the file decides whether sessions are deleted; later openers respect it, or change it."""
    path = tmp_path / "chats.db"
    for wanted, found in ((None, True), (False, False), (None, False), (True, True), (None, True)):
        with Emulator(path, retention=wanted) as emulator:
            assert emulator.retention is found
    with Emulator(tmp_path / "kept.db", retention=False) as emulator:
        session = emulator.client().create_session()["sessionId"]
        emulator.clock.advance(400 * DAY)
    with Emulator(tmp_path / "kept.db") as emulator:
        assert emulator.client().get_session(sessionIdentifier=session)["sessionStatus"] == "EXPIRED"


def test_what_retention_has_deleted_stays_deleted(tmp_path: Path) -> None:
    """Turning retention off later brings nothing back."""
    with Emulator(tmp_path / "chats.db") as emulator:
        emulator.client().create_session()
        emulator.clock.advance(30 * DAY)
    with Emulator(tmp_path / "chats.db", retention=False) as emulator:
        assert emulator.client().list_sessions()["sessionSummaries"] == []


def test_the_clock_is_the_file_s(tmp_path: Path) -> None:
    """All emulators on a file, now and later, have one time."""
    path = tmp_path / "chats.db"
    with Emulator(path) as one, Emulator(path) as other:
        one.clock.stop(NOW)
        other.clock.advance(60)
        assert one.clock.now() == NOW + timedelta(seconds=60)
    with Emulator(path) as later:
        assert later.clock.now() == NOW + timedelta(seconds=60)


# Several at once

# Lets a program import the emulator without the package around it, as LlamaIndex takes seconds to import.
ALONE = f"""
import sys, types
package = sys.modules["llama_index_bedrock_sessions"] = types.ModuleType("llama_index_bedrock_sessions")
package.__path__ = [{str(Path(database.__file__).parents[1])!r}]
"""
_CREATOR = f"""{ALONE}
from llama_index_bedrock_sessions.emulator import Emulator
Emulator().client()
print("ready", flush=True)
sys.stdin.readline()
print(Emulator(sys.argv[1]).client().create_session()["sessionId"], flush=True)
"""


@pytest.mark.parametrize("empty", [False, True])
def test_processes_that_create_a_file_at_once_share_it(tmp_path: Path, empty: bool) -> None:
    """Of several creators one wins, and all find the sessions of all; an empty file may be there already."""
    path = tmp_path / "chats.db"
    if empty:
        path.touch()
    command = [sys.executable, "-c", _CREATOR, str(path)]
    creators = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [creator.stdout.readline() for creator in creators if creator.stdout] == ["ready\n"] * 3
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("go\n")
        creator.stdin.flush()
    made = {creator.communicate(timeout=60)[0].strip() for creator in creators}
    with Emulator(path) as emulator:
        listed = emulator.client().list_sessions()["sessionSummaries"]
    assert {session["sessionId"] for session in listed} == made
    assert len(made) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["chats.db"]


def test_threads_share_a_file(tmp_path: Path) -> None:
    """Sixteen threads put through one client while others read: every acknowledged step is there, none twice."""
    with Emulator(tmp_path / "chats.db") as emulator:
        client = emulator.client()
        session, invocation = begin(client)
        with ThreadPoolExecutor(16) as pool:
            done = list(pool.map(lambda _: put(client, session, invocation), range(200)))
            reads = [pool.submit(client.list_invocation_steps, sessionIdentifier=session) for _ in range(20)]
        assert all(read.result() for read in reads)
        listed = client.list_invocation_steps(sessionIdentifier=session, maxResults=1000)["invocationStepSummaries"]
    assert sorted(step["invocationStepId"] for step in listed) == sorted(done)


def test_late_lists_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    """Lists that are late are reads: they are answered while another process writes."""
    late = Behaviour(steps_listed_after_seconds=1, sessions_listed_after_seconds=1)
    with Emulator(tmp_path / "chats.db", behaviour=late) as reader, Emulator(tmp_path / "chats.db") as writer:
        client = reader.client()
        session = client.create_session()["sessionId"]
        with writer._database.writing():
            assert client.list_sessions()["sessionSummaries"] == []
            assert client.list_invocation_steps(sessionIdentifier=session)["invocationStepSummaries"] == []


def test_the_step_limit_holds_between_threads(tmp_path: Path) -> Any:
    """Of more concurrent puts than a session takes, exactly as many succeed as there is room."""
    with Emulator(tmp_path / "chats.db", behaviour=Behaviour(steps_per_session=10)) as emulator:
        client = emulator.client()
        session, invocation = begin(client)

        def attempt(_: int) -> bool:
            try:
                put(client, session, invocation)
            except client.exceptions.ServiceQuotaExceededException:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(30))) == 10


def test_clients_are_made_in_threads() -> None:
    """Making clients in many threads at once works: botocore's sessions alone would not bear it."""
    with Emulator() as emulator, ThreadPoolExecutor(8) as pool:
        statuses = pool.map(lambda _: emulator.client().create_session()["sessionStatus"], range(24))
        assert set(statuses) == {"ACTIVE"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_emulator_survives_a_fork(tmp_path: Path, in_memory: bool) -> None:
    """A child process goes on with the file, or with a copy of the memory; the parent is not disturbed."""
    with Emulator(None if in_memory else tmp_path / "chats.db") as emulator:
        client = emulator.client()
        session = client.create_session()["sessionId"]
        child = os.fork()
        if child == 0:
            try:
                emulator.client().update_session(sessionIdentifier=session, sessionMetadata={"child": "yes"})
                found = client.get_session(sessionIdentifier=session)["sessionMetadata"]
                os._exit(0 if found == {"child": "yes"} else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        described = client.get_session(sessionIdentifier=session)
        assert described.get("sessionMetadata") == (None if in_memory else {"child": "yes"})
        client.update_session(sessionIdentifier=session, sessionMetadata={"parent": "yes"})


_WRITER = f"""{ALONE}
from datetime import datetime, timezone
from llama_index_bedrock_sessions.emulator import Emulator
client = Emulator(sys.argv[1]).client()
session = client.create_session()["sessionId"]
invocation = client.create_invocation(sessionIdentifier=session)["invocationId"]
print(session, flush=True)
while True:
    print(client.put_invocation_step(
        sessionIdentifier=session, invocationIdentifier=invocation, invocationStepTime=datetime.now(timezone.utc),
        payload={{"contentBlocks": [{{"text": "x" * 1000}}]}},
    )["invocationStepId"], flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_what_was_acknowledged_survives_sigkill(tmp_path: Path) -> None:
    """A writer killed in the middle has lost no step it had an answer for, and the file opens."""
    path = tmp_path / "chats.db"
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        session = writer.stdout.readline().strip()
        acknowledged = [writer.stdout.readline().strip() for _ in range(50)]
        writer.kill()
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    with Emulator(path) as emulator:
        answer = emulator.client().list_invocation_steps(sessionIdentifier=session, maxResults=1000)
    listed = {step["invocationStepId"] for step in answer["invocationStepSummaries"]}
    assert set(acknowledged) <= listed
    assert len(listed) <= len(acknowledged) + 1


def test_a_full_disk_is_an_internal_error(tmp_path: Path) -> None:
    """What SQLite cannot store is answered with InternalServerException, and nothing of it is kept."""
    from botocore.config import Config

    with Emulator(tmp_path / "chats.db") as emulator:
        client = emulator.client(config=Config(retries={"total_max_attempts": 1}))
        session, invocation = begin(client)
        with emulator._database.writing() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(client.exceptions.InternalServerException, match="full"):
            put(client, session, invocation, text="x" * 1_000_000)
        assert client.list_invocation_steps(sessionIdentifier=session)["invocationStepSummaries"] == []
        assert client.end_session(sessionIdentifier=session)["sessionStatus"] == "ENDED"


def test_deleted_text_leaves_the_file(tmp_path: Path) -> None:
    """After a session is deleted and the emulator closed, its text is in no page of the file."""
    path = tmp_path / "chats.db"
    with Emulator(path) as emulator:
        client = emulator.client()
        session, invocation = begin(client)
        put(client, session, invocation, text="a very private word " * 500)
        client.end_session(sessionIdentifier=session)
        client.delete_session(sessionIdentifier=session)
    assert b"very private" not in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["chats.db"]


def test_the_emulator_needs_nothing_of_the_library() -> None:
    """Alone it serves a client, and has imported neither LlamaIndex nor any other module of this package."""
    script = f"""{ALONE}
from llama_index_bedrock_sessions.emulator import Emulator
Emulator().client().create_session()
print(sorted({{name.partition(".")[2].partition(".")[0] for name in sys.modules if name.startswith(package.__name__)}}))
print([name for name in sys.modules if name.split(".")[0] in ("llama_index", "pydantic", "boto3")])
"""
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert output == "['', 'emulator']\n[]\n"
