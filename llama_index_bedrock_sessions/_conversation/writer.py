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
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions._journal.journal import Journal
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

    def append(
        self, resolve: Resolve, *, just_listed: bool = False, with_archived: bool = True, ended: bool = False
    ) -> None:
        """Write what `resolve` returns for the journal, in this session or the next.

        `just_listed`: the heads have just been listed. `with_archived`: `resolve` needs archived messages too. `ended`:
        write even if the conversation has ended. Raises as `writable` does.
        """
        for journal in self.writable(resolve, just_listed=just_listed, with_archived=with_archived, ended=ended):
            draft = resolve(journal)
            if draft is None:
                return
            try:
                self._steps.write(journal, draft)
            except (NotFound, RequestRejected) as refusal:
                self.after_refusal(journal, refusal)
                continue
            self._reader.unlisted += 1
            return

    def append_with(self, texts: Sequence[str], draft: Callable[[list[tuple[Home, int]]], Draft]) -> None:
        """Write texts as attachments, each a step, and then the draft that refers to them.

        All of them go to one session: redact() copies what is referred to, and deletes the rest.
        """
        if not texts:
            alone = draft([])
            self.append(lambda _: alone, just_listed=True)
            return
        for journal in self.writable():
            place = (journal.heads[0], default_invocation(journal.heads[0]))
            try:
                references = [(self._steps.attach(place, [{"text": text}]), 0) for text in texts]
                self._steps.write(journal, draft(references))
            except (NotFound, RequestRejected) as refusal:
                self.after_refusal(journal, refusal)
                continue
            self._reader.unlisted += 1
            return

    def writable(
        self, resolve: Resolve = noop, *, just_listed: bool = False, with_archived: bool = True, ended: bool = False
    ) -> Iterator[Journal]:
        """Yield what is known while there is one session that seems to take writes.

        If the conversation has to continue in another session, the opening contains what `resolve` returns. Then
        nothing more is yielded.

        Raises:
            ConversationEnded: the conversation was ended, and not `ended`; a list has confirmed it.
            UnavailableError: no session was found or opened that takes writes.

        """
        has_listed = just_listed
        for _ in attempts("The conversation could not be continued in a session that takes writes; try again."):
            known = self._reader.journal
            if known is None or self._reader.unlisted >= LIST_AFTER or not (known.heads or just_listed):
                self._reader.refresh(with_archived=with_archived)
            journal, just_listed = self._reader.known(with_archived=with_archived), False
            self.sessions.check_encryption_key(journal.heads)
            if journal.fold.ended() and not ended:
                if has_listed:
                    raise self.conversation_ended()
                has_listed = bool(self._reader.refresh(force=True, with_archived=with_archived))
            elif not self._continuation.is_due(journal):
                yield journal
            elif not self._continuation.continue_in_new_session(journal, resolve, ended=ended):
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

    def after_refusal(self, journal: Journal, refusal: NotFound | RequestRejected) -> None:
        """Find out what a refusal means: from the status of the session, never from the error."""
        head = journal.heads[0]
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
        journal.plan.saw_list(head, self.sessions.listed(head))
        if len(journal.plan.listed[head]) < STEPS_PER_SESSION:
            raise refusal.error() from refusal
        self.sessions.closed.add(head)
