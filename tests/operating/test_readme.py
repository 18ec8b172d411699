"""The README cannot lie: its Python is run, its commands exist, its policies allow what is called and no more.

What it shows for AWS is run as far as that goes without an account: constructing makes no call. The Lambda handler is
called with its store replaced by one with the documented argument `client=`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions._bedrock import client, media
from llama_index_bedrock_sessions.cli import demo
from llama_index_bedrock_sessions.cli.commands import main
from llama_index_bedrock_sessions.conformance import ChatStoreContract
from llama_index_bedrock_sessions.emulator import Emulator
from llama_index_bedrock_sessions.events import dispatcher
from tests.support.s3 import S3

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def fenced(language: str, *, after: str = "") -> list[str]:
    """Give the fenced blocks of a language, those after a heading."""
    text = README[README.index(after) :]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def execute(block: str) -> dict[str, Any]:
    """Run a block, `llm` being the scripted model; it may await as in a notebook."""
    names: dict[str, Any] = {"llm": demo.scripted_model(), "__name__": "readme"}
    code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:

        async def run() -> None:
            await eval(code, names)

        asyncio_run(run())
    else:
        exec(code, names)
    return names


@pytest.mark.parametrize(
    "block", fenced("python"), ids=lambda block: f"line {README[: README.index(block)].count(chr(10)) + 1}"
)
def test_every_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs on its own, without an account or a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dispatcher, "event_handlers", list(dispatcher.event_handlers))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    execute(block)


def test_the_first_block_stores_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first block, question and answer are in the file it names, under the key it names."""
    monkeypatch.chdir(tmp_path)
    names = execute(fenced("python")[0])
    stored = BedrockSessionsChatStore.local("chats.db").get_messages("user-42")
    assert [message.content for message in stored] == ["Where were we?", str(names["answer"])]


def test_the_fastapi_snippet_remembers_each_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP a user's second question is answered from his first, and another user's is not."""
    monkeypatch.chdir(tmp_path)
    transport = httpx.ASGITransport(app=execute(fenced("python", after="### Behind FastAPI")[0])["app"])

    async def ask(user: str, question: str) -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://application") as client:
            response = await client.post("/chat", params={"question": question}, headers={"X-User": user})
        assert response.status_code == 200, response.text
        return str(response.json())

    async def talk() -> tuple[str, str]:
        await ask("one", "INC-4711: checkout is slow.")
        return await ask("one", "What do we know?"), await ask("two", "What do we know?")

    first, second = asyncio.run(talk())
    assert "INC-4711, as we left it" in first
    assert second == demo.GREETING


def test_the_lambda_snippet_remembers_each_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two invocations, each in an event loop of its own, are one conversation; its store is given a `client=` here."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    names = execute(fenced("python", after="### In a Lambda function")[0])
    assert isinstance(names["store"], BedrockSessionsChatStore)

    def ask(user: str, question: str) -> str:
        claims = {"requestContext": {"authorizer": {"jwt": {"claims": {"sub": user}}}}}
        reply = names["handler"]({**claims, "body": json.dumps({"question": question})}, None)
        assert reply["statusCode"] == 200
        return str(json.loads(reply["body"])["answer"])

    with Emulator() as service:
        names["store"] = BedrockSessionsChatStore(client=service.client())
        ask("one", "INC-4711: checkout is slow.")
        assert "INC-4711, as we left it" in ask("one", "What do we know?")
        assert ask("two", "What do we know?") == demo.GREETING


def test_the_contract_snippet_is_a_test_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet under "Test any chat store" is a complete test class."""
    monkeypatch.chdir(tmp_path)
    assert issubclass(execute(fenced("python", after="## Test any chat store")[0])["TestMyStore"], ChatStoreContract)


def test_the_policy_allows_what_is_called_and_no_more() -> None:
    """The statement to paste allows the calls that a life of a conversation makes, and what IAM wants besides."""
    statements = json.loads(fenced("json")[0])["Statement"]
    allowed = set(statements[0]["Action"]) | {statements[1]["Action"]}
    source = inspect.getsource(client)
    operations = re.findall(r'(?:_call|_pages)\(\s*"(\w+)"', source)
    with Emulator() as service:
        store = BedrockSessionsChatStore(client=service.client(), tags={"Environment": "Test"})
        chat = store.conversation("INC-4711", session_metadata={"severity": "high"})
        for day in range(2):
            service.clock.advance(26 * 3600)
            with chat.invocation(f"Day {day}"):
                chat.add([ChatMessage("Checkout is slow.")], state={"day": day})
        chat.update_metadata({"severity": "low"}, tags={"Team": "payments"})
        chat.fork("again", before=chat.history()[-1].id).end("It is not slow.")
        chat.delete()
        called = {"bedrock:" + call.operation for call in service.calls}
    assert called == {"bedrock:" + operation.title().replace("_", "") for operation in operations}
    # IAM asks for this as well, with ListInvocationSteps.
    assert allowed == called | {"bedrock:ListInvocations"}


def test_the_policy_for_media_allows_what_is_called_and_no_more() -> None:
    """The policy of the bucket allows the actions the module calls, on the prefix that the example names."""
    (objects, bucket) = json.loads(fenced("json", after="### Large pictures")[0])["Statement"]
    assert {*objects["Action"], bucket["Action"]} == set(re.findall(r'"(s3:\w+)"', inspect.getsource(media)))
    assert objects["Resource"] == f"{bucket['Resource']}/chats/*"


def test_the_lifecycle_rule_is_one() -> None:
    """S3 takes the rule, and it deletes no object of a conversation whose sessions are still there."""
    command = next(block for block in fenced("sh") if "lifecycle" in block)
    rules = json.loads(command.split("'")[1])
    s3 = S3()
    s3.client.put_bucket_lifecycle_configuration(Bucket=s3.bucket, LifecycleConfiguration=rules)
    # Objects are renewed at nine days by a session that is a day old at most; messages live for 20 days after that.
    assert rules["Rules"][0]["Expiration"]["Days"] >= media.RENEW_AGE.days + 1 + 20


def test_every_policy_is_json() -> None:
    """Each JSON block is a complete IAM policy."""
    assert {json.loads(block)["Version"] for block in fenced("json")} == {"2012-10-17"}
    assert len(fenced("json")) == 3


@pytest.mark.thorough
def test_every_command_exists() -> None:
    """Each `bedrock-sessions` command and option that the README names is in that command's help."""
    named = {tuple(found) for found in re.findall(r"bedrock-sessions (\w+)((?: --\w+)?)", README)}
    assert {command for command, _ in named} == {"demo", "emulate", "renew"}
    for command, option in named:
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        assert option.strip() in result.output


def test_every_command_of_the_line_has_help() -> None:
    """Each command says what it does."""
    assert [name for name, command in main.commands.items() if not command.get_short_help_str()] == []


def slug(heading: str) -> str:
    """Give the anchor that a heading gets on a code host."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def test_every_link_leads_to_something() -> None:
    """Each relative link of the documents leads to a file, and each anchor to a heading."""
    for document in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / document).read_text("utf-8")
        headings = {slug(heading) for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)}
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            assert not path or (ROOT / path).exists(), (document, target)
            assert not anchor or anchor in headings, (document, target)


def test_the_thirty_days_are_the_first_limit() -> None:
    """The first of the limits is that Bedrock deletes after 30 days."""
    limits = README[README.index("### What can go wrong") :]
    assert re.search(r"1\. \*\*Thirty days\.\*\*", limits)
    assert limits.index("Thirty days") < limits.index("2. **")
