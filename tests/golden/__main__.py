"""Write the golden files that are missing: see the package's docstring."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.draft import Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import Home, Kind, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import ENDED, HIDDEN, MARK, Mark
from llama_index_bedrock_sessions._journal.values import dump

from . import FOLDER, FUTURE, described, text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

FIRST = ("6f1c9a52-3a1e-4a59-9f0e-0d6c2b1a7e11", "0b8f6f1e-25cd-5f2e-9a43-7d1b5e0c4f22")
NEXT = ("c2d7e8f9-4b5a-4c6d-8e7f-901a2b3c4d5e", "7a6b5c4d-3e2f-5a1b-8c0d-9e8f7a6b5c4d")
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAEElEQVR4nGM4oTQJghggFAA4jAYjW0mEsgAAAABJRU5ErkJggg=="
)
IMAGE = ImageBlock(image=PNG)


class Writer:
    """Writes one conversation and freezes its steps; the images it has written can be found again."""

    def __init__(self) -> None:
        self.journal = Journal([FIRST[0]])
        self.now = 1_767_323_045_678
        self.native_blocks: dict[Home, list[ContentBlock]] = {}

    def put(self, name: str, draft: Draft, placed: Placed | None = None) -> Home:
        """Compose a step, freeze it, and take note of it as stored."""
        self.now += 1500
        composed = self.journal.compaction.compose(FIRST, draft, placed or Placed(), self.now)
        self.journal.stored(composed)
        self.freeze(name, composed.step.home, composed.payload)
        return composed.step.home

    def add(self, name: str, *messages: ChatMessage) -> Home:
        """Put a step that adds messages."""
        return self.put(name, Draft(message_codec.encode(messages)))

    def freeze(self, name: str, home: Home, payload: Sequence[ContentBlock], time: int | None = None) -> None:
        """Write a golden file, unless it is there."""
        self.native_blocks[home] = list(payload)
        path = FOLDER / "v1" / f"{name}.json"
        at = self.now if time is None else time
        step = read_step(home, payload, at)
        used = {place for _, c in step.contents if c for m in c.messages.values() for place, _ in m.references()}
        native_blocks = [{"home": list(h), "content": [text(b) for b in self.native_blocks[h]]} for h in sorted(used)]
        reads = described(step, self.native_blocks)
        content = [text(b) for b in payload]
        write(path, {"home": list(home), "time": at, "content": content, "natives": native_blocks, "reads": reads})


def write(path: Path, data: Any) -> None:
    """Write a file, unless it is there: what was released stays as it is."""
    if not path.exists():
        path.write_text(json.dumps(data, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")


def over_archived(w: Writer, created: dict[str, int]) -> None:
    """Freeze the opening of a session after one in which all is archived."""
    archived = Journal([FIRST[0]])
    archived.stored(
        archived.compaction.compose(FIRST, Draft(message_codec.encode([ChatMessage("long " * 2000)])), Placed(), w.now)
    )
    put_away = Draft(archived=frozenset(message.id for message in archived.fold.alive()))
    archived.stored(archived.compaction.compose(FIRST, put_away, Placed(), w.now))
    composed = archived.compaction.compose(
        NEXT, Draft(), Placed(), w.now, opening=archived.compaction.opening(created, w.now)
    )
    w.freeze("opening_over_archived", composed.step.home, composed.payload)


def marks(w: Writer) -> None:
    """Freeze what hides, restores, ends and reopens a conversation."""
    w.put("hide", Draft(marks={HIDDEN: Mark(on=True, said={"reason": "retention", "by": "privacy office"})}))
    w.put("restore", Draft(marks={HIDDEN: Mark(on=False)}))
    said = {"summary": "an index was missing", "kind": "fix", "by": "Ada"}
    w.put("end", Draft(marks={ENDED: Mark(on=True, said=said)}))
    w.put("reopen", Draft(marks={ENDED: Mark(on=False, said={"reason": "it is back"})}))


def main() -> None:
    """Write what is missing."""
    w = Writer()
    w.add("turn", ChatMessage("What is on this picture?"), ChatMessage(role="assistant", content="A small dog. 🐕"))
    w.add("image", ChatMessage(role="user", blocks=[TextBlock(text="look"), IMAGE, TextBlock(text="here 日本")]))
    w.add(
        "every_block",
        ChatMessage(
            role="assistant",
            blocks=[
                TextBlock(text=""),
                ThinkingBlock(content="hm", num_tokens=3, additional_information={"signature": "abc"}),
                ToolCallBlock(tool_call_id="call-1", tool_name="search", tool_kwargs={"q": "dog", "n": 2}),
                CachePoint(cache_control=CacheControl(type="ephemeral", ttl="5m")),
                DocumentBlock(data=b"%PDF-1.4", title="a.pdf", document_mimetype="application/pdf"),
                AudioBlock(audio=b"RIFF", format="wav"),
                VideoBlock(video=b"\x00\x00", video_mimetype="video/mp4", fps=2),
                CitableBlock(title="t", source="s", content=[TextBlock(text="cited")]),
                CitationBlock(
                    title="t", source="s", cited_content=TextBlock(text="cited"), additional_location_info={"page": 1}
                ),
                ImageBlock(url="https://example.com/a.png"),
            ],
            additional_kwargs={"id": 2**70, "nan": float("nan"), "bytes": b"\xff", "half": "\ud83d"},
        ),
        ChatMessage(role="tool", content="3 results", additional_kwargs={"tool_call_id": "call-1"}),
    )
    first = w.journal.fold.alive()[0].id
    w.put("remove_and_archive", Draft(removed=frozenset({first}), archived=frozenset({w.journal.fold.alive()[1].id})))
    w.put("state", Draft(state={"hypotheses": [["dns", {"p": 0.5}]], "old": []}, by="engineer"))
    marks(w)
    w.put("invocation_and_origin", Draft(invocations={NEXT[1]: "night shift"}, origin={"session": NEXT[0]}))
    last = w.journal.fold.alive()[-1].id
    w.put("rewind", Draft(removed=frozenset({last}), state={"old": []}, rewind={"before": last[0]}))
    w.put("labels", Draft(invocations={NEXT[1]: "half of an emoji: \ud83d"}, by="Ad\udc00a"))
    everything = frozenset(m.id for m in w.journal.fold.alive())
    w.put("set", Draft(message_codec.encode([ChatMessage("all anew")]), removed=everything, is_set=True))
    w.put("moved", Draft(message_codec.encode([ChatMessage("sent twice")]), id=new_id(w.now - 60_000, Kind.CHANGE)))
    attachment = Home(*FIRST, new_id(w.now + 1, Kind.ATTACHMENT))
    encoded = message_codec.encode([ChatMessage(role="user", blocks=[IMAGE, TextBlock(text="and"), IMAGE])])
    w.freeze("attachment", attachment, [encoded.blocks[0], envelope({"attachment": True}, {})])
    placed = Placed((None, attachment), ((1, 0), (0, 0), (0, 1)), tuple(encoded.blocks[1:]))
    w.put("with_attachment", Draft(encoded), placed)
    foreign = Home(*FIRST, "1f0c9d3e-7c1b-4e55-8f6a-2b3c4d5e6f70")
    w.freeze("foreign", foreign, [{"text": "from another tool"}, encoded.blocks[0]], w.now - 500)
    w.journal.plan.saw_list(FIRST[0], [Listed(foreign, w.now - 500)])
    w.journal.absorb(read_step(foreign, w.native_blocks[foreign], w.now - 500))
    w.add("carrying", ChatMessage("long " * 2000))
    w.add("naming", ChatMessage("short"))
    w.freeze("plain_text_under_our_id", Home(*FIRST, new_id(w.now, Kind.CHANGE)), [{"text": "hand-written"}])
    w.freeze("damaged", Home(*FIRST, new_id(w.now, Kind.CHANGE)), [{"text": f'{{"{MARK}":1,"change":7}}'}])
    closing = Home(*FIRST, new_id(w.now + 10, Kind.CLOSING))
    w.freeze("closing", closing, [envelope({"closing": {"reason": "continued"}}, {})])
    w.journal.plan.saw_list(FIRST[0], [Listed(closing, w.now)])
    created = {FIRST[0]: w.now - 86_400_000}
    opening = w.journal.compaction.opening(created, w.now)
    composed = w.journal.compaction.compose(
        NEXT, Draft(message_codec.encode([ChatMessage("go on")])), Placed(), w.now, opening=opening
    )
    w.freeze("opening", composed.step.home, composed.payload)
    first_opening = Journal([])
    composed = first_opening.compaction.compose(
        FIRST, Draft(), Placed(), w.now, opening=first_opening.compaction.opening({}, w.now)
    )
    w.freeze("first_opening", composed.step.home, composed.payload)
    over_archived(w, created)
    offload = message_codec.Offload(10, ("s3://a-bucket/chats/a-conversation/",))
    recording = [IMAGE, VideoBlock(video=b"\x00\x01" * 10, video_mimetype="video/mp4"), AudioBlock(audio=b"RIFF")]
    in_s3 = message_codec.encode([ChatMessage(role="user", blocks=recording)], offload=offload)
    composed = Journal([FIRST[0]]).compaction.compose(FIRST, Draft(in_s3), Placed(), w.now)
    w.freeze("in_s3", composed.step.home, composed.payload)
    future = Home(*FIRST, new_id(w.now, Kind.CHANGE))
    content = [{"text": "a native text"}, {"text": dump({MARK: 2, "release": "2.0.0", "change": {"new": 1}})}]
    refused = r"format 2; this release reads up to 1\. Upgrade to llama-index-bedrock-sessions 2\.0\.0 or later"
    write(FUTURE, {"home": list(future), "time": w.now, "content": content, "reads": {"refused": refused}})


if __name__ == "__main__":
    main()
