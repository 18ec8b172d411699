"""Paused workflows: what is stored of a `Context`, and what is checked before somebody goes on with it. Pure.

A saved context is named state of its conversation, under names that begin with `PREFIX`: see `docs/format.md`, section
"Named state". Content of up to `INLINE` bytes is a value itself, which is carried from session to session. Larger
content is in attachments, which are copied once in nine days. `Chain.claim` lets one process take a context.

Without a serializer, only JSON is read and written. Unpickling would let anyone who can write to the session run code
in the process that loads it.
"""

import base64
import dataclasses
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.workflow import Context, Workflow
from workflows.context.serializers import BaseSerializer, JsonSerializer
from workflows.utils import get_steps_from_instance

from llama_index_bedrock_sessions._journal.model import Change
from llama_index_bedrock_sessions._journal.values import JSON, dump
from llama_index_bedrock_sessions.errors import (
    AlreadyResumed,
    BedrockSessionsError,
    InvalidContextError,
    StepTooLargeError,
    StoredDataError,
)

PREFIX = "context/"
"""Begins the names of the state that saved contexts are kept under."""
_SAVED, _CONTENT, _TAKEN = f"{PREFIX}saved/", f"{PREFIX}content/", f"{PREFIX}taken/"
LIMIT = 50_000_000
"""Bytes of JSON a context may have."""
INLINE = 16 * 1024
"""Bytes of packed content up to which it is carried: about that of 60 KB of JSON. A paused agent has 1 to 2 KB."""
PART = 4 * 1024 * 1024
"""Bytes of packed content in one attachment: what is sent again if a connection breaks."""


@dataclasses.dataclass(frozen=True)
class SavedContext:
    """A saved context as `Conversation.contexts()` lists it: times in ISO 8601, `size` in bytes of JSON.

    `taken` is when it was last loaded, None if it never was; `taken_by` who that was, if it was said.
    """

    name: str
    saved: str
    workflow: str
    size: int
    taken: str | None
    taken_by: str | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A context as it was at one moment, as JSON text, and what it is a context of."""

    text: str
    about: Mapping[str, JSON]

    def content(self) -> list[str]:
        """Return it packed, in as many texts as it takes: attachments, unless it is one of at most `INLINE` bytes."""
        packed = base64.b64encode(zlib.compress(self.text.encode())).decode()
        return [packed[start : start + PART] for start in range(0, len(packed), PART)]

    def state(self, name: str, context_id: str, time: str, content: JSON) -> dict[str, list[JSON]]:
        """Return the named state that says it."""
        record = {"id": context_id, "time": time, **self.about}
        return {_SAVED + name: [record], _CONTENT + name: [content]}


def is_inline(content: Sequence[str]) -> bool:
    """Whether packed content is small enough to be carried."""
    return len(content) == 1 and len(content[0]) <= INLINE


def snapshot(context: Context[Any], serializer: BaseSerializer | None) -> Snapshot:
    """Return what a context is at this moment. To be called where its workflow runs: nothing may change meanwhile.

    Raises:
        InvalidContextError: no Context of a run seen from outside, or something in it that JSON cannot say.
        StepTooLargeError: it exceeds 50 MB.

    """
    if not isinstance(context, Context):
        raise InvalidContextError(f"A workflow's Context is wanted, such as handler.ctx, not {type(context).__name__}.")
    try:
        data = context.to_dict(serializer or JsonSerializer())
        text = dump(data)
    except BedrockSessionsError:
        raise
    except Exception as error:  # noqa: BLE001 - serialisers raise what they like
        raise InvalidContextError(_unsayable(error)) from None  # it holds the value, which may be a secret
    size = len(text.encode())
    if size > LIMIT:
        raise StepTooLargeError(
            f"The context takes {size / 1e6:.1f} MB as JSON; up to {LIMIT // 1_000_000} MB can be saved. Nothing was "
            "stored. Keep large things elsewhere, and their names or URLs in the context."
        )
    about = {**_identity(workflow_of(context)), "serializer": _class_name(serializer), "size": size}
    return Snapshot(text, about)


def _unsayable(error: Exception) -> str:
    key = re.match(r"Failed to serialize state value for key (.{1,80}?):", str(error))
    what = f": what ctx.store holds under {key[1]!r}" if key else f" ({type(error).__name__})"
    return (
        f"The context cannot be said in JSON{what}. Nothing was stored. Save it from outside of the workflow's steps "
        "(handler.ctx), keep plain values, pydantic models and LlamaIndex components in it, or pass a serializer."
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """A saved context as it is stored: its record, its content, and who has taken it."""

    name: str
    record: Mapping[str, JSON]
    content: JSON
    taken: Mapping[str, JSON] | None

    @property
    def id(self) -> str:
        """The id of what was saved, which saving again under the same name changes."""
        return str(self.record["id"])

    def listed(self) -> SavedContext:
        """Return it as it is listed."""
        record, taken = self.record, self.taken or {}
        return SavedContext(
            self.name, record["time"], record["workflow"], record["size"], taken.get("time"), taken.get("by")
        )

    def claim(self, by: str | None, time: str) -> dict[str, list[JSON]]:
        """Return the named state that says that it is taken."""
        return {_TAKEN + self.name: [{"of": self.id, "by": by, "time": time}]}

    def check_not_taken(self) -> None:
        """Refuse it if it was taken. Raises AlreadyResumed."""
        if self.taken is not None:
            raise _already_resumed(self.name, self.taken)

    def lost_to(self, claim: Change) -> AlreadyResumed:
        """Return the error that says that another process has taken it."""
        taken = next(iter(claim.state.get(_TAKEN + self.name, [])), None)
        return _already_resumed(self.name, taken if isinstance(taken, dict) else {})

    def check_same_workflow(self, workflow: Workflow, serializer: BaseSerializer | None) -> None:
        """Refuse it if it is another workflow's, or needs another serializer. Raises InvalidContextError."""
        if not isinstance(workflow, Workflow):
            raise InvalidContextError(f"A workflow is wanted, not {type(workflow).__name__}.")
        mine = _identity(workflow)
        if _without_main(mine["workflow"], self.record["workflow"]) != _without_main(
            self.record["workflow"], mine["workflow"]
        ):
            raise self._refusal(f"of the workflow {self.record['workflow']}, not of {mine['workflow']}")
        if mine["agents"] != self.record["agents"]:
            raise self._refusal(f"of the agents {self.record['agents']}, not of {mine['agents']}")
        if lacking := sorted({*self.record["steps"]} - {*mine["steps"]}):
            raise self._refusal(f"of a workflow that had the steps {lacking}, which this one has not")
        if _class_name(serializer) != self.record["serializer"]:
            needed = self.record["serializer"]
            raise self._refusal(f"saved {f'with serializer={needed}' if needed else 'without a serializer'}: do alike")

    def _refusal(self, what: str) -> InvalidContextError:
        return InvalidContextError(f"The context {self.name!r} is {what}. It was not loaded, and is not taken.")

    def restored(self, texts: Sequence[str], workflow: Workflow, serializer: BaseSerializer | None) -> Context[Any]:
        """Return the context made again of its packed content.

        Raises:
            StoredDataError: the content is not what was stored.
            InvalidContextError: a class it needs is not there, or does not take what it once gave.
            ConfigurationError: a memory or a store in it has to be constructed first.

        """
        try:
            inflate = zlib.decompressobj()
            data = json.loads(inflate.decompress(base64.b64decode("".join(texts), validate=True), LIMIT))
        except (ValueError, zlib.error, RecursionError):
            raise StoredDataError(f"The content of the context {self.name!r} cannot be read.") from None
        reader = serializer or _reader(workflow)
        try:
            # What the store holds is made when it is first asked for: here, where an error has taken nothing yet.
            _ = Context.from_dict(workflow, data, reader).store
            return Context.from_dict(workflow, data, reader)
        except BedrockSessionsError:
            raise
        except Exception as error:
            # Not what it says: that may quote what the context holds.
            raise self._refusal(f"not to be made again here ({type(error).__name__})") from error


def find(state: Mapping[str, JSON], name: str) -> Found:
    """Return a saved context.

    Raises:
        InvalidContextError: there is none of that name.
        StoredDataError: what is stored is not what this release writes.

    """
    record, taken = state.get(_SAVED + name), state.get(_TAKEN + name)
    if record is None:
        names = sorted(n.removeprefix(_SAVED) for n in state if n.startswith(_SAVED))
        raise InvalidContextError(f"There is no saved context {name!r}; there are {names}.")
    texts, lists = ("id", "time", "workflow"), ("agents", "steps")
    if not (
        isinstance(record, dict)
        and all(isinstance(record.get(n), str) for n in texts)
        and all(isinstance(record.get(n), list) and all(isinstance(i, str) for i in record[n]) for n in lists)
        and isinstance(record.get("size"), int)
        and isinstance(record.get("serializer"), (str, type(None)))
    ):
        raise StoredDataError(f"What is stored of the context {name!r} cannot be read.")
    is_this = isinstance(taken, dict) and taken.get("of") == record["id"]
    return Found(name, record, state.get(_CONTENT + name), taken if is_this else None)


def names(state: Mapping[str, JSON]) -> list[str]:
    """Return the names of the saved contexts."""
    return sorted(name.removeprefix(_SAVED) for name in state if name.startswith(_SAVED))


def deleted(name: str) -> dict[str, list[JSON]]:
    """Return the named state that says that there is no such context any more."""
    return {prefix + name: [] for prefix in (_SAVED, _CONTENT, _TAKEN)}


def check_name(name: object) -> None:
    """Refuse what is no name of a context. Raises InvalidContextError."""
    if not isinstance(name, str) or not name:
        raise InvalidContextError(f"The name of a saved context is a string that is not empty, not {name!r}.")


def check_reader(by: object) -> None:
    """Refuse what cannot be stored as the one who loads. Raises InvalidContextError."""
    if by is not None and not isinstance(by, str):
        raise InvalidContextError(f"by= is a string, such as a user's name, not {type(by).__name__}.")


def _already_resumed(name: str, taken: Mapping[str, JSON]) -> AlreadyResumed:
    by, time = (text if isinstance(text := taken.get(member), str) else None for member in ("by", "time"))
    known = f"{f' by {by}' if by else ''}{f' at {time}' if time else ''}"
    return AlreadyResumed(
        f"The context {name!r} was loaded{known}, and goes on there. "
        "If that came to nothing (a crash, say), load it with again=True: what was done since is done twice.",
        by=by,
        at=time,
    )


def workflow_of(context: Context[Any]) -> Workflow:
    """Return the workflow of a context. The package `workflows` has no public way to ask for it.

    Raises:
        InvalidContextError: a context of a release that keeps its workflow elsewhere.

    """
    workflow = getattr(getattr(context, "_face", None), "_workflow", None)
    if not isinstance(workflow, Workflow):
        raise InvalidContextError("This release of llama-index-workflows does not show the workflow of a Context.")
    return workflow


def _identity(workflow: Workflow) -> dict[str, Any]:
    """Return what tells workflows apart: the class, the agents by name, and the steps."""
    agents = getattr(workflow, "agents", None)
    name = getattr(workflow, "name", None)
    steps = {**get_steps_from_instance(workflow), **getattr(type(workflow), "_step_functions", {})}
    return {
        "workflow": _class_name(workflow),
        "agents": sorted(map(str, agents)) if isinstance(agents, dict) else [name] if isinstance(name, str) else [],
        "steps": sorted(map(str, steps)),
    }


def _class_name(thing: object) -> str | None:
    return None if thing is None else f"{type(thing).__module__}.{type(thing).__qualname__}"


def _without_main(name: str, other: str) -> str:
    """Return a class's name, without its module if one of the two was run as a script."""
    if not any(n.startswith("__main__.") for n in (name, other)):
        return name
    return name.rpartition(".")[2]


def _reader(workflow: Workflow) -> BaseSerializer:
    """Return the serializer the workflow reads JSON with: it knows the classes its steps name. Never pickle."""
    own = getattr(workflow.runtime, "get_serializer", None)
    found = own(workflow) if own else None
    return found if type(found) is JsonSerializer else JsonSerializer()
