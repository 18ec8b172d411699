"""Append to the open session of a conversation; if it takes no more writes, `continuation.py` opens the next."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._bedrock.errors import NotFound, RequestRejected, attempts
from llama_index_bedrock_sessions._conversation.continuation import Continuation, Resolve, noop
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import STEPS_PER_SESSION
from llama_index_bedrock_sessions._conversation.steps import StepWriter
from llama_index_bedrock_sessions._journal.fold import Draft, Fold
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions.errors import ConversationEnded

logger = logging.getLogger("llama_index_bedrock_sessions")
LIST_AFTER = 16
"""Appends without a list after which a writer lists again, so that it carries what other writers have left."""


class Writer:
    """Appends changes to a conversation. Not locked: the conversation holds the lock."""

    def __init__(self, reader: Reader, steps: StepWriter, continuation: Continuation) -> None:
        self.sessions = reader.sessions
        self._reader = reader
        self._steps = steps
        self._continuation = continuation

    def append(self, resolve: Resolve, *, fresh: bool = False, whole: bool = True, ended: bool = False) -> None:
        """Write what `resolve` makes of the fold, in this session or the next.

        `fresh`: the fold has just been listed. `whole`: `resolve` needs archived messages too. `ended`: write even if
        the conversation has ended. Raises as `writable` does.
        """
        for fold in self.writable(resolve, fresh=fresh, whole=whole, ended=ended):
            draft = resolve(fold)
            if draft is None:
                return
            try:
                self._steps.write(fold, draft)
            except (NotFound, RequestRejected) as refusal:
                self.after_refusal(fold, refusal)
                continue
            self._reader.unlisted += 1
            return

    def append_with(self, texts: Sequence[str], draft: Callable[[list[tuple[Home, int]]], Draft]) -> None:
        """Write texts as attachments, each a step, and then the draft that refers to them.

        All of them go to one session: redact() copies what is referred to, and deletes the rest.
        """
        if not texts:
            alone = draft([])
            self.append(lambda _: alone, fresh=True)
            return
        for fold in self.writable():
            place = (fold.heads[0], default_invocation(fold.heads[0]))
            try:
                references = [(self._steps.attach(place, [{"text": text}]), 0) for text in texts]
                self._steps.write(fold, draft(references))
            except (NotFound, RequestRejected) as refusal:
                self.after_refusal(fold, refusal)
                continue
            self._reader.unlisted += 1
            return

    def writable(
        self, resolve: Resolve = noop, *, fresh: bool = False, whole: bool = True, ended: bool = False
    ) -> Iterator[Fold]:
        """Yield what is known while there is one session that seems to take writes.

        If the conversation has to continue in another session, the opening contains what `resolve` makes of the fold,
        and nothing more is yielded.

        Raises:
            ConversationEnded: the conversation was ended, and not `ended`; a list has confirmed it.
            UnavailableError: no session was found or opened that takes writes.

        """
        has_listed = fresh
        for _ in attempts("The conversation could not be continued in a session that takes writes; try again."):
            known = self._reader.fold
            if known is None or self._reader.unlisted >= LIST_AFTER or not (known.heads or fresh):
                self._reader.refresh(whole=whole)
            fold, fresh = self._reader.known(whole=whole), False
            self.sessions.check_encryption_key(fold.heads)
            if fold.ended() and not ended:
                if has_listed:
                    raise self.conversation_ended()
                has_listed = bool(self._reader.refresh(force=True, whole=whole))
            elif not self._continuation.is_due(fold):
                yield fold
            elif not self._continuation.continue_in_new_session(fold, resolve, ended=ended):
                has_listed = False
            elif resolve is not noop:
                return

    def conversation_ended(self) -> ConversationEnded:
        """Return the error for a write to a conversation that has ended."""
        return ConversationEnded(
            f"The conversation {self.sessions.key!r} was ended and takes no more messages. Nothing was written. "
            + (
                "Call reopen() of the conversation first."
                if self.sessions.directory.continues
                else "A session that is used by its id cannot be reopened."
            )
        )

    def after_refusal(self, fold: Fold, refusal: NotFound | RequestRejected) -> None:
        """Find out what a refusal means: from the status of the session, never from the error."""
        head = fold.heads[0]
        try:
            status = self.sessions.client.get(head).status
        except NotFound:
            logger.info("conversation %s: session %s is gone; looking for another", self.sessions.name, head)
            self._reader.drop()
            return
        logger.info(
            "conversation %s: session %s, which is %s, has refused a write: %s",
            *(self.sessions.name, head, status, getattr(refusal, "code", "not found")),
        )
        if status != "ACTIVE":
            # A session that is not ACTIVE and has refused a write takes none, so there is no need to close it.
            self.sessions.closed.add(head)
            return
        if isinstance(refusal, NotFound):
            self.sessions.invocations.clear()
            with contextlib.suppress(NotFound, RequestRejected):  # the next put reports what is wrong
                self.sessions.client.create_invocation(head, default_invocation(head))
            return
        fold.saw_list(head, self.sessions.listed(head))
        if len(fold.listed[head]) < STEPS_PER_SESSION:
            raise refusal.error() from refusal
        self.sessions.closed.add(head)
