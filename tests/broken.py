"""The library broken on purpose, one protection at a time, so that those who judge histories can be seen to judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from llama_index_bedrock_sessions import chain, directory, fold, sessions
from llama_index_bedrock_sessions.errors import ServiceError


def only_the_newest_session(patch: pytest.MonkeyPatch) -> None:
    find = directory.MetadataDirectory.find
    patch.setattr(directory.MetadataDirectory, "find", lambda self, key, *since: list(find(self, key, *since))[:1])


def sessions_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain.Chain, "_seal", lambda *_: None)


def removals_are_not_carried(patch: pytest.MonkeyPatch) -> None:
    reduced = fold.Fold._reduced
    patch.setattr(fold.Fold, "_reduced", lambda self, *a: dataclasses.replace(reduced(self, *a), removed=frozenset()))


def archived_messages_are_handed_down_bare(patch: pytest.MonkeyPatch) -> None:
    bare: dict[str, Any] = {"removed": frozenset(), "archived": frozenset()}
    patch.setattr(fold.Fold, "_handed_down", lambda _, change: dataclasses.replace(change, **bare))


def marks_are_not_carried(patch: pytest.MonkeyPatch) -> None:
    reduced = fold.Fold._reduced
    patch.setattr(fold.Fold, "_reduced", lambda self, *a: dataclasses.replace(reduced(self, *a), marks={}))
    patch.setattr(fold.Fold, "_is_marking", lambda *_: False)


def ending_leaves_sessions_open(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain.Chain, "_finish", lambda *_: None)


def redacting_copies_nothing(patch: pytest.MonkeyPatch) -> None:
    perishable = fold.Fold.perishable
    patch.setattr(fold.Fold, "perishable", lambda self, created, now, **_: perishable(self, created, now))


def all_that_is_inherited_is_at_rest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fold.Fold, "_is_at_rest", lambda *_: True)


def local_clocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sessions.Clock, "saw", lambda *_: None)


def entries_are_not_put(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(directory.KeyValueDirectory, "_put", lambda *_: None)


def written_again_without_a_look(patch: pytest.MonkeyPatch) -> None:
    write = chain.Chain._write

    def again(self: Any, fold: Any, draft: Any) -> None:
        try:
            write(self, fold, draft)
        except ServiceError:
            draft.id = None
            write(self, fold, draft)

    patch.setattr(chain.Chain, "_write", again)
    patch.setattr(sessions.Sessions, "_is_there", lambda *_: False)


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
    )
}
