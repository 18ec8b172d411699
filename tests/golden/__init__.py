"""Steps as each released format wrote them, frozen with what they must be read as.

A file holds one step: where it is (`home`), its `invocationStepTime` in ms (`time`), its content blocks (bytes as
base64), blocks of other steps that it refers to (`natives`), and `reads`: the changes with their messages, as they are
kept and as they are shown, and all else a step says.

`python -m tests.golden` writes the files that are missing, and never touches one that is there: what was released stays
as it is. A new version of the format adds a folder.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.encoding import facts_json, opening_json
from llama_index_bedrock_sessions._journal.ids import Home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llama_index_bedrock_sessions._journal.model import Change, Message, Step

FOLDER = Path(__file__).parent
FUTURE = FOLDER / "negative" / "future_version.json"


class Stored(NamedTuple):
    """A golden file."""

    home: Home
    time: int
    content: list[dict[str, Any]]
    native_blocks: dict[Home, list[dict[str, Any]]]
    reads: Any


def paths() -> list[Path]:
    """Every golden file that has to be read."""
    return sorted(FOLDER.glob("v*/*.json"))


def load(path: Path) -> Stored:
    """Read a golden file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    native_blocks = {Home(*n["home"]): [_bytes(b) for b in n["content"]] for n in data.get("natives", ())}
    return Stored(Home(*data["home"]), data["time"], [_bytes(b) for b in data["content"]], native_blocks, data["reads"])


def _bytes(block: dict[str, Any]) -> dict[str, Any]:
    if "bytes" not in block.get("image", {}).get("source", ()):
        return block
    image = block["image"]
    return {"image": {**image, "source": {"bytes": base64.b64decode(image["source"]["bytes"])}}}


def text(block: dict[str, Any]) -> dict[str, Any]:
    """Return a content block as a golden file has it."""
    if "bytes" not in block.get("image", {}).get("source", ()):
        return block
    image = block["image"]
    return {"image": {**image, "source": {"bytes": base64.b64encode(image["source"]["bytes"]).decode()}}}


def described(step: Step, native_blocks: Mapping[Home, Sequence[Any]]) -> Any:
    """Return all that a step says, as JSON."""
    return {
        "changes": [
            [source_step, _change(change, native_blocks) if change else None] for source_step, change in step.contents
        ],
        "named": [list(home) for home in step.named],
        "taken": sorted(step.taken),
        "opening": opening_json(step.opening) if step.opening else None,
    }


def _change(change: Change, native_blocks: Mapping[Home, Sequence[Any]]) -> Any:
    return {
        "id": change.id,
        "time": change.time,
        "written": list(change.written) if change.written else None,
        "foreign": change.foreign,
        "damaged": change.damaged,
        "facts": facts_json(change),
        "messages": [
            {
                "position": position,
                "record": message.record,
                "homes": [list(home) for home in message.homes],
                "shows": _shown(message, native_blocks),
            }
            for position, message in sorted(change.messages.items())
        ],
    }


def _shown(message: Message, native_blocks: Mapping[Home, Sequence[Any]]) -> Any:
    def resolve(item: Any) -> Any:
        n, h = (item, 0) if isinstance(item, int) else (item["n"], item.get("h", 0))
        return native_blocks[message.homes[h]][n]

    shown = message_codec.encode([message_codec.decode(message.record, resolve)], native_blocks=False)
    return [shown.records[0], shown.blocks]
