"""The library broken on purpose, one protection at a time, so that those who judge histories can be seen to judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from llama_index_bedrock_sessions._bedrock import client, clock, media
from llama_index_bedrock_sessions._bedrock.directory import key_value, metadata
from llama_index_bedrock_sessions._conversation import (
    claims,
    continuation,
    conversation,
    deletion,
    fork,
    reader,
    sessions,
    steps,
    writer,
)
from llama_index_bedrock_sessions._journal import compaction, fold, limits
from llama_index_bedrock_sessions.errors import ServiceError


def only_the_newest_session(patch: pytest.MonkeyPatch) -> None:
    find = metadata.MetadataDirectory.find
    patch.setattr(metadata.MetadataDirectory, "find", lambda self, key, *since: list(find(self, key, *since))[:1])


def sessions_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions.ConversationSessions, "seal", lambda *_: None)


def removals_are_not_carried(patch: pytest.MonkeyPatch) -> None:
    reduced = compaction.Compaction._pruned
    patch.setattr(
        compaction.Compaction, "_pruned", lambda self, *a: dataclasses.replace(reduced(self, *a), removed=frozenset())
    )


def archived_messages_are_handed_down_bare(patch: pytest.MonkeyPatch) -> None:
    bare: dict[str, Any] = {"removed": frozenset(), "archived": frozenset()}
    patch.setattr(compaction.Compaction, "_handed_down", lambda _, change: dataclasses.replace(change, **bare))


def marks_are_not_carried(patch: pytest.MonkeyPatch) -> None:
    reduced = compaction.Compaction._pruned
    patch.setattr(compaction.Compaction, "_pruned", lambda self, *a: dataclasses.replace(reduced(self, *a), marks={}))
    patch.setattr(fold.Fold, "is_marking", lambda *_: False)


def ending_leaves_sessions_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions.ConversationSessions, "finish", lambda *_: None)


def redacting_copies_nothing(patch: pytest.MonkeyPatch) -> None:
    expiring_segments = compaction.Compaction.expiring_segments
    patch.setattr(
        compaction.Compaction,
        "expiring_segments",
        lambda self, created, now, **_: expiring_segments(self, created, now),
    )


def all_that_is_inherited_is_at_rest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction.Compaction, "_is_archive_only", lambda *_: True)


def local_clocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(clock.Clock, "saw", lambda *_: None)


def entries_are_not_put(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(key_value.KeyValueDirectory, "_put", lambda *_: None)


def written_again_without_a_look(patch: pytest.MonkeyPatch) -> None:
    write = steps.StepWriter.write

    def again(self: Any, fold: Any, draft: Any) -> None:
        try:
            write(self, fold, draft)
        except ServiceError:
            draft.id = None
            write(self, fold, draft)

    patch.setattr(steps.StepWriter, "write", again)
    patch.setattr(client.SessionClient, "_is_there", lambda *_: False)


def contexts_are_loaded_without_a_claim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claims, "claim", lambda _reader, writer, _continuation, _id, resolve: writer.append(resolve))


def attachments_of_state_are_not_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fold.Fold, "state_references", lambda _: [])


def forks_do_not_copy_what_is_archived(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(conversation, "Copy", lambda encoded, _: limits.Copy(encoded, False))


def forks_do_not_copy_state(patch: pytest.MonkeyPatch) -> None:
    start: Any = fork.start_with

    def without_state(*arguments: Any, **more: Any) -> None:
        *parts, draft = arguments
        start(*parts, dataclasses.replace(draft, state={}), **more)

    patch.setattr(conversation, "start_with", without_state)


def forks_do_not_look_for_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fork, "is_first", lambda *_: True)


def copies_are_opened_by_others(patch: pytest.MonkeyPatch) -> None:
    create = sessions.ConversationSessions.create

    def unmarked(self: Any, *arguments: Any, copy: bool = False, **more: Any) -> Any:
        return create(self, *arguments, **more)

    patch.setattr(sessions.ConversationSessions, "create", unmarked)


def others_beside_a_copy_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(continuation.Continuation, "close_others", lambda _: None)


def forks_do_not_copy_media(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(media.Objects, "copy", lambda *_: None)


def referenced_media_are_deleted(patch: pytest.MonkeyPatch) -> None:
    def delete(self: Any, stored: Any, **_: Any) -> None:
        if media := self.sessions.settings.media:
            media.delete(stored)

    patch.setattr(deletion.Deletion, "_delete_media", delete)


def media_stay_in_s3(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion.Deletion, "_delete_media", lambda *_, **__: None)


def state_is_not_carried(patch: pytest.MonkeyPatch) -> None:
    reduced = compaction.Compaction._pruned
    patch.setattr(compaction.Compaction, "_pruned", lambda self, *a: dataclasses.replace(reduced(self, *a), state={}))


def a_reader_of_a_deleted_session_does_not_list_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader.Reader, "_miss", lambda *_: None)


def redacting_does_not_remove_first(patch: pytest.MonkeyPatch) -> None:
    append = writer.Writer.append

    def unless_it_removes(self: Any, resolve: Any, **more: Any) -> None:
        if not (more == {"just_listed": True, "ended": True} and resolve(None).removed):
            append(self, resolve, **more)

    patch.setattr(writer.Writer, "append", unless_it_removes)


def redacting_does_not_look_for_what_is_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion.Deletion, "_delete_late", lambda *_: [])


def redacting_does_not_wait_for_its_copy(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deletion.Deletion, "_wait_until_found", lambda *_: None)


def sessions_are_deleted_newest_first(patch: pytest.MonkeyPatch) -> None:
    created_at = sessions.ConversationSessions.created_at
    patch.setattr(sessions.ConversationSessions, "created_at", lambda self, session: -created_at(self, session))


def nothing_waits_for_lists(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client.SessionClient, "wait_until_listed", lambda _: None)


def nothing_is_looked_for_once_lists_have_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader.Reader, "_unsettled", lambda *_: iter(()))


def a_writer_does_not_list_after_creating_a_session(patch: pytest.MonkeyPatch) -> None:
    find, add = metadata.MetadataDirectory.find, metadata.MetadataDirectory.add
    created: set[int] = set()

    def found(self: Any, *arguments: Any) -> Any:
        if id(self) in created:
            created.remove(id(self))
            return iter(())
        return find(self, *arguments)

    def added(self: Any, info: Any) -> None:
        created.add(id(self))
        add(self, info)

    patch.setattr(metadata.MetadataDirectory, "find", found)
    patch.setattr(metadata.MetadataDirectory, "add", added)


BROKEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    function.__name__: function
    for function in (
        only_the_newest_session,
        sessions_are_not_closed,
        removals_are_not_carried,
        archived_messages_are_handed_down_bare,
        marks_are_not_carried,
        ending_leaves_sessions_open,
        redacting_copies_nothing,
        all_that_is_inherited_is_at_rest,
        local_clocks,
        entries_are_not_put,
        written_again_without_a_look,
        contexts_are_loaded_without_a_claim,
        attachments_of_state_are_not_copied,
        forks_do_not_copy_what_is_archived,
        forks_do_not_copy_state,
        forks_do_not_look_for_others,
        forks_do_not_copy_media,
        referenced_media_are_deleted,
        media_stay_in_s3,
        state_is_not_carried,
        a_reader_of_a_deleted_session_does_not_list_again,
        a_writer_does_not_list_after_creating_a_session,
        copies_are_opened_by_others,
        others_beside_a_copy_are_not_closed,
        redacting_does_not_remove_first,
        redacting_does_not_look_for_what_is_left,
        redacting_does_not_wait_for_its_copy,
        sessions_are_deleted_newest_first,
        nothing_waits_for_lists,
        nothing_is_looked_for_once_lists_have_settled,
    )
}
