"""Paused workflows: how a `Context` is stored, and what is checked before it is loaded. No I/O.

A saved context is named state of its conversation, under names that begin with `PREFIX`: see `docs/format.md`, section
"Named state". Content of up to `INLINE` bytes is a value of the state and is carried from session to session. Larger
content is in attachments, which are copied once in nine days. `claims.py` lets only one process take a context.

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
"""Prefix of the named state that holds saved contexts."""
_SAVED, _CONTENT, _TAKEN = f"{PREFIX}saved/", f"{PREFIX}content/", f"{PREFIX}taken/"
LIMIT = 50_000_000
"""Bytes of JSON a context may have."""
INLINE = 16 * 1024
"""Bytes of packed content up to which it is carried: about 60 KB of JSON. A paused agent has 1 to 2 KB."""
PART = 4 * 1024 * 1024
"""Bytes of packed content in one attachment, and so the most that is sent again after a broken connection."""


@dataclasses.dataclass(frozen=True)
class SavedContext:
    """A saved context as `Conversation.contexts()` lists it. Times are ISO 8601, `size` is in bytes of JSON.

    `taken` is the time of the last load, None if there was none. `taken_by` is the `by` that was given then.
    """

    name: str
    saved: str
    workflow: str
    size: int
    taken: str | None
    taken_by: str | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A context at one moment as JSON text, and the identity of its workflow."""

    text: str
    about: Mapping[str, JSON]

    def content(self) -> list[str]:
        """Return the packed context as texts: one of at most `INLINE` bytes, or one for each attachment."""
        packed = base64.b64encode(zlib.compress(self.text.encode())).decode()
        return [packed[start : start + PART] for start in range(0, len(packed), PART)]

    def state(self, name: str, context_id: str, time: str, content: JSON) -> dict[str, list[JSON]]:
        """Return the named state that stores the context."""
        record = {"id": context_id, "time": time, **self.about}
        return {_SAVED + name: [record], _CONTENT + name: [content]}


def is_inline(content: Sequence[str]) -> bool:
    """Whether packed content is small enough to be carried."""
    return len(content) == 1 and len(content[0]) <= INLINE


def snapshot(context: Context[Any], serializer: BaseSerializer | None) -> Snapshot:
    """Return a snapshot of a context. Call it in the event loop of the workflow, so that nothing changes during it.

    Raises:
        InvalidContextError: the argument is not the Context of a run from outside, or JSON cannot represent a value.
        StepTooLargeError: the context exceeds 50 MB.

    """
    if not isinstance(context, Context):
        raise InvalidContextError(
            f"Expected the Context of a workflow, such as handler.ctx, got {type(context).__name__}."
        )
    try:
        data = context.to_dict(serializer or JsonSerializer())
        text = dump(data)
    except BedrockSessionsError:
        raise
    except Exception as error:  # noqa: BLE001 - serialisers raise what they like
        raise InvalidContextError(_not_json(error)) from None  # the error contains the value, which may be a secret
    size = len(text.encode())
    if size > LIMIT:
        raise StepTooLargeError(
            f"The context takes {size / 1e6:.1f} MB as JSON; the limit is {LIMIT // 1_000_000} MB. Nothing was stored. "
            "Keep large values elsewhere, and their names or URLs in the context."
        )
    about = {**_identity(workflow_of(context)), "serializer": _class_name(serializer), "size": size}
    return Snapshot(text, about)


def _not_json(error: Exception) -> str:
    key = re.match(r"Failed to serialize state value for key (.{1,80}?):", str(error))
    what = f": the value of {key[1]!r} in ctx.store" if key else f" ({type(error).__name__})"
    return (
        f"JSON cannot represent the context{what}. Nothing was stored. Save it from outside of the workflow's steps "
        "(handler.ctx), keep plain values, pydantic models and LlamaIndex components in it, or pass a serializer."
    )


@dataclasses.dataclass(frozen=True)
class Found:
    """A stored context: its record, its content, and its claim if it was taken."""

    name: str
    record: Mapping[str, JSON]
    content: JSON
    taken: Mapping[str, JSON] | None

    @property
    def id(self) -> str:
        """The id of this save. Another save under the same name has another id."""
        return str(self.record["id"])

    def listed(self) -> SavedContext:
        """Return the context as `Conversation.contexts()` lists it."""
        record, taken = self.record, self.taken or {}
        return SavedContext(
            self.name, record["time"], record["workflow"], record["size"], taken.get("time"), taken.get("by")
        )

    def claim(self, by: str | None, time: str) -> dict[str, list[JSON]]:
        """Return the named state that marks the context as taken."""
        return {_TAKEN + self.name: [{"of": self.id, "by": by, "time": time}]}

    def check_not_taken(self) -> None:
        """Raise AlreadyResumed if the context was taken."""
        if self.taken is not None:
            raise _already_resumed(self.name, self.taken)

    def lost_to(self, claim: Change) -> AlreadyResumed:
        """Return the error for a context that another process has taken."""
        taken = next(iter(claim.state.get(_TAKEN + self.name, [])), None)
        return _already_resumed(self.name, taken if isinstance(taken, dict) else {})

    def check_same_workflow(self, workflow: Workflow, serializer: BaseSerializer | None) -> None:
        """Raise InvalidContextError if the context is of another workflow or needs another serializer."""
        if not isinstance(workflow, Workflow):
            raise InvalidContextError(f"Expected a workflow, got {type(workflow).__name__}.")
        mine = _identity(workflow)
        if _without_main(mine["workflow"], self.record["workflow"]) != _without_main(
            self.record["workflow"], mine["workflow"]
        ):
            raise self._refusal(f"of the workflow {self.record['workflow']}, not of {mine['workflow']}")
        if mine["agents"] != self.record["agents"]:
            raise self._refusal(f"of the agents {self.record['agents']}, not of {mine['agents']}")
        if lacking := sorted({*self.record["steps"]} - {*mine["steps"]}):
            raise self._refusal(f"of a workflow with the steps {lacking}, which this one lacks")
        if _class_name(serializer) != self.record["serializer"]:
            needed = self.record["serializer"]
            how = f"with serializer={needed}" if needed else "without a serializer"
            raise self._refusal(f"saved {how}: load it in the same way")

    def _refusal(self, what: str) -> InvalidContextError:
        return InvalidContextError(f"The context {self.name!r} is {what}. It was not loaded and can still be loaded.")

    def restored(self, texts: Sequence[str], workflow: Workflow, serializer: BaseSerializer | None) -> Context[Any]:
        """Return the context, restored from its packed content.

        Raises:
            StoredDataError: the content is damaged.
            InvalidContextError: a class that it needs is missing, or does not accept its own stored values.
            ConfigurationError: a memory or a store in it has to be constructed first.

        """
        try:
            inflate = zlib.decompressobj()
            data = json.loads(inflate.decompress(base64.b64decode("".join(texts), validate=True), LIMIT))
        except (ValueError, zlib.error, RecursionError):
            raise StoredDataError(f"The content of the context {self.name!r} cannot be read.") from None
        reader = serializer or _reader(workflow)
        try:
            # The first access of `store` restores its values: here, where an error leaves the context untaken.
            _ = Context.from_dict(workflow, data, reader).store
            return Context.from_dict(workflow, data, reader)
        except BedrockSessionsError:
            raise
        except Exception as error:
            # The message of the error may quote values of the context, so only its class is shown.
            raise self._refusal(f"not restorable here ({type(error).__name__})") from error


def find(state: Mapping[str, JSON], name: str) -> Found:
    """Return a saved context.

    Raises:
        InvalidContextError: there is no context of that name.
        StoredDataError: the stored record is not one that this release writes.

    """
    record, taken = state.get(_SAVED + name), state.get(_TAKEN + name)
    if record is None:
        names = sorted(n.removeprefix(_SAVED) for n in state if n.startswith(_SAVED))
        existing = f"Saved contexts: {names}." if names else "There are no saved contexts."
        raise InvalidContextError(f"There is no saved context {name!r}. {existing}")
    texts, lists = ("id", "time", "workflow"), ("agents", "steps")
    if not (
        isinstance(record, dict)
        and all(isinstance(record.get(n), str) for n in texts)
        and all(isinstance(record.get(n), list) and all(isinstance(i, str) for i in record[n]) for n in lists)
        and isinstance(record.get("size"), int)
        and isinstance(record.get("serializer"), (str, type(None)))
    ):
        raise StoredDataError(f"The record of the context {name!r} cannot be read.")
    is_this = isinstance(taken, dict) and taken.get("of") == record["id"]
    return Found(name, record, state.get(_CONTENT + name), taken if is_this else None)


def names(state: Mapping[str, JSON]) -> list[str]:
    """Return the names of the saved contexts."""
    return sorted(name.removeprefix(_SAVED) for name in state if name.startswith(_SAVED))


def deleted(name: str) -> dict[str, list[JSON]]:
    """Return the named state that deletes a context."""
    return {prefix + name: [] for prefix in (_SAVED, _CONTENT, _TAKEN)}


def check_name(name: object) -> None:
    """Raise InvalidContextError if this cannot be the name of a context."""
    if not isinstance(name, str) or not name:
        raise InvalidContextError(f"The name of a saved context is a non-empty string, not {name!r}.")


def check_reader(by: object) -> None:
    """Raise InvalidContextError if this cannot be stored as `by`."""
    if by is not None and not isinstance(by, str):
        raise InvalidContextError(f"by= is a string, such as a user's name, not {type(by).__name__}.")


def _already_resumed(name: str, taken: Mapping[str, JSON]) -> AlreadyResumed:
    by, time = (text if isinstance(text := taken.get(member), str) else None for member in ("by", "time"))
    known = f"{f' by {by}' if by else ''}{f' at {time}' if time else ''}"
    return AlreadyResumed(
        f"The context {name!r} was loaded{known} and continues there. "
        "If that run crashed, pass again=True; steps since the save will run again.",
        by=by,
        at=time,
    )


def workflow_of(context: Context[Any]) -> Workflow:
    """Return the workflow of a context, for which the package `workflows` has no public attribute.

    Raises:
        InvalidContextError: this release of `workflows` keeps the workflow elsewhere.

    """
    workflow = getattr(getattr(context, "_face", None), "_workflow", None)
    if not isinstance(workflow, Workflow):
        raise InvalidContextError("This release of llama-index-workflows does not show the workflow of a Context.")
    return workflow


def _identity(workflow: Workflow) -> dict[str, Any]:
    """Return the identity of a workflow: its class, the names of its agents, and its steps."""
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
    """Return the JSON serializer of a workflow, which knows the classes that its steps name. Never pickle."""
    own = getattr(workflow.runtime, "get_serializer", None)
    found = own(workflow) if own else None
    return found if type(found) is JsonSerializer else JsonSerializer()
