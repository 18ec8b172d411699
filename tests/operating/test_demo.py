"""`bedrock-sessions demo`, run as a user runs it: the command, in processes of its own."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.tools import FunctionTool

from llama_index_bedrock_sessions.cli import demo
from llama_index_bedrock_sessions.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llama_index_bedrock_sessions.cli", *arguments]
    plain = {"NO_COLOR": "1", "COLUMNS": "120", "PYTHONUTF8": "1", **environment}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", env=os.environ | plain, check=False, stdin=subprocess.DEVNULL
    )


def day(output: str, number: int) -> str:
    """Give what the demo shows of a day, its lines joined."""
    found = re.search(rf"Day {number} · process \d+.*?\n(.*?)(?:\n╭|\n─)", output, re.DOTALL)
    assert found, output
    return " ".join(found[1].split())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The demo on the embedded service, run once: its output and its database."""
    database = tmp_path_factory.mktemp("demo") / "new folder" / "incident.db"
    result = run("demo", "--database", str(database))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout, database


@pytest.fixture(scope="module")
def forgetting() -> str:
    """The demo on SimpleChatStore, run once, in a narrow terminal: its output."""
    result = run("demo", "--forget", COLUMNS="80")
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_with_our_store_the_second_day_knows_the_first(local: tuple[str, Path]) -> None:
    """On day 2 the agent names the incident, what both tools found, and the size of the picture."""
    output, _ = local
    second = day(output, 2)
    assert demo.INCIDENT not in demo.FOLLOW_UP
    assert "INC-4711, as we left it" in second
    assert f"rose to {max(demo.LATENCIES):,} ms" in second
    assert re.search(r"\d+ log lines say", second)
    assert "960 x 540 pixels" in second
    assert demo.GREETING not in output


@pytest.mark.thorough
def test_with_simple_chat_store_the_second_day_knows_nothing(forgetting: str) -> None:
    """The same program on SimpleChatStore works on day 1 and greets on day 2."""
    assert f"rose to {max(demo.LATENCIES):,} ms" in day(forgetting, 1)
    assert demo.GREETING in day(forgetting, 2)
    assert "(1 system, 1 user)" in day(forgetting, 2)


def test_the_days_are_two_processes_and_the_clock_moves(local: tuple[str, Path]) -> None:
    """Two process ids are shown, and by the service's clock the second session was created 26 hours after the first."""
    output, database = local
    processes = re.findall(r"Day \d · process (\d+)", output)
    assert len(set(processes)) == 2
    with Emulator(database) as emulator:
        first, second = demo.held(emulator.client(), "default")
    hours = (second.session["createdAt"] - first.session["createdAt"]).total_seconds() / 3600
    assert 26 <= hours < 26.1


def test_what_is_shown_is_what_the_service_holds(local: tuple[str, Path]) -> None:
    """Sessions, statuses, numbers of steps and the picture's hash are those boto3 reads from the database."""
    output, database = local
    with Emulator(database) as emulator:
        held = demo.held(emulator.client(), "default")
    assert [one.session["sessionStatus"] for one in held] == ["EXPIRED", "ACTIVE"]
    for one in held:
        row = next(line.split() for line in output.splitlines() if line.startswith(one.session["sessionId"]))
        assert row[-3:] == [one.session["sessionStatus"], str(len(one.invocations)), str(len(one.steps))]
    digest = hashlib.sha256(database.with_suffix(".png").read_bytes()).hexdigest()
    images = [
        block["image"]
        for one in held
        for step in one.steps
        for block in step["payload"]["contentBlocks"]
        if "image" in block
    ]
    assert [hashlib.sha256(image["source"]["bytes"]).hexdigest() for image in images] == [digest]
    assert [image["format"] for image in images] == ["png"]
    assert output.count(digest) == 2


@pytest.mark.thorough
def test_the_calls_shown_are_counted(local: tuple[str, Path]) -> None:
    """The number of calls of each day is the sum of its operations, and the steps put are the steps there are."""
    output, database = local
    put = 0
    for number in (1, 2):
        found = re.search(rf"Day {number}: (\d+) calls to the service \(([^)]*)\)", " ".join(output.split()))
        assert found
        operations = dict(part.rsplit(" ", 1) for part in found[2].split(", "))
        assert int(found[1]) == sum(map(int, operations.values()))
        put += int(operations["PutInvocationStep"])
    with Emulator(database) as emulator:
        stored = sum(len(one.steps) for one in demo.held(emulator.client(), "default"))
    # One put on day 2 meets the expired session and is refused: at most that one is not a step.
    assert stored <= put <= stored + 1


@pytest.mark.thorough
def test_what_to_type_next_works(local: tuple[str, Path]) -> None:
    """The Python lines at the end run as they are printed, and print the conversation."""
    output, _ = local
    program = output.split("# in Python: print the conversation\n")[1]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.count("assistant: ") == 4
    assert "INC-4711, as we left it" in result.stdout


@pytest.mark.thorough
def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    """A database or picture that is there already is not written to, and the message names it."""
    for taken in ("incident.db", "incident.png"):
        folder = tmp_path / taken
        folder.mkdir()
        (folder / taken).write_text("mine")
        result = run("demo", "--database", str(folder / "incident.db"))
        assert result.returncode == 1
        assert "already exists. Choose a new file for --database." in " ".join(result.stderr.split())
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(taken, "mine")]


@pytest.mark.thorough
def test_no_line_is_wider_than_the_terminal(local: tuple[str, Path], forgetting: str) -> None:
    """At 120 and at 80 columns nothing runs over but what is to be copied, and NO_COLOR leaves no escape codes."""
    for output, width in ((local[0], 120), (forgetting, 80)):
        shown = output.split("What to type next")[0]
        assert max(map(len, shown.splitlines())) <= width
        assert "\x1b" not in output


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--forget", "--region", "us-west-2"), "leave out --database and --forget"),
        (("--forget", "--database", "x.db"), "leave out --database"),
        (("--model", "some-model"), "--model needs AWS"),
    ],
)
def test_contradictions_are_refused(arguments: tuple[str, ...], said: str) -> None:
    """Options that contradict each other are refused in a sentence, and nothing is run."""
    result = run("demo", *arguments)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split())
    assert "process" not in result.stdout


@pytest.mark.thorough
def test_without_credentials_the_demo_on_aws_says_so() -> None:
    """On AWS without credentials the demo ends with one clear error and no traceback."""
    result = run("demo", "--region", "us-west-2")
    assert result.returncode == 1
    assert "Error: CredentialsError: No usable AWS credentials" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


@pytest.fixture
def aws() -> Iterator[tuple[Emulator, str]]:
    """An emulator where boto3 looks for AWS: behind HTTP, at an address the environment gives."""
    with Emulator() as emulator, emulator.serve() as server:
        yield emulator, server.url


def run_on(address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    credentials = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example"}
    return run("demo", *arguments, AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME=address, **credentials)


@pytest.mark.thorough
def test_the_demo_on_aws_deletes_what_it_made(aws: tuple[Emulator, str]) -> None:
    """With --region the demo remembers on AWS too, reports that no day passes, and leaves nothing behind."""
    emulator, address = aws
    bystander = emulator.client().create_session()["sessionId"]
    result = run_on(address, "--region", "us-west-2")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "INC-4711, as we left it" in day(result.stdout, 2)
    assert "no day passes" in " ".join(result.stdout.split())
    assert "Deleted on AWS: 1 session. Left: 0." in result.stdout
    left = emulator.client().list_sessions()["sessionSummaries"]
    assert [session["sessionId"] for session in left] == [bystander]


@pytest.mark.thorough
def test_the_demo_on_aws_deletes_after_a_failure(aws: tuple[Emulator, str]) -> None:
    """When AWS refuses in the middle, the error is shown and what was made is deleted all the same."""
    emulator, address = aws
    emulator.faults.add("PutInvocationStep", 4, "access_denied")
    result = run_on(address, "--region", "us-west-2")
    assert result.returncode == 1
    assert "Error: AccessDeniedError" in result.stderr
    assert "Deleted on AWS: 1 session. Left: 0." in result.stdout
    assert emulator.client().list_sessions()["sessionSummaries"] == []


def test_without_click_and_rich_the_command_says_what_to_install(tmp_path: Path) -> None:
    """Where the `cli` extra is missing, the command says so in one line."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    result = run("demo", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr == "bedrock-sessions needs the package rich: pip install 'llama-index-bedrock-sessions[cli]'\n"


def test_the_scripted_model_knows_its_messages_only() -> None:
    """The model's answer is a function of the messages: the same question gets another answer without the first day."""
    report = ChatMessage(
        role=MessageRole.USER,
        blocks=[TextBlock(text=demo.REPORT), ImageBlock(image=demo.draw_dashboard())],
    )
    follow_up = ChatMessage(role=MessageRole.USER, content=demo.FOLLOW_UP)
    assert demo.answer([follow_up]).content == demo.GREETING
    assert "960 x 540" in str(demo.answer([report, follow_up]).content)
    tools = [FunctionTool.from_defaults(demo.query_metrics), FunctionTool.from_defaults(demo.search_logs)]
    first_call = demo.answer([report], tools).blocks[0]
    assert isinstance(first_call, ToolCallBlock)
    assert first_call.tool_name == "query_metrics"
    assert demo.answer([report]).blocks[0].block_type == "text"
