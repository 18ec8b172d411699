"""Claim something once, of all processes.

Theory of operation. Of all processes that claim the same id, at most one is given it. Two facts make it so: an
invocation of a given id is created once (the second CreateInvocation is refused: strongly inferred, AWS's own client
is built on it), and a session takes no writes once it has ended (documented).

In the head every process derives the same invocation from the claimed id.

1. Look for the claim in the parents. They take no writes any more, but what they took last may be listed late.
2. Create the invocation.
   - This call created it: write the claim there.
   - It existed, or the reply was lost: look for the claim. If it is there, another process has it. If it is not,
     close the head, so that the claim can never be written there, and begin again in the next session.
3. Look for claims in sessions opened at the same moment as the head. A process that claims later sees the other's
   claim. If both see both, neither has it. (Where the service lists new sessions late, this look can miss one.)

What a put of a known step id does is unknown, and does not matter. Claims that were made long before are for
`resolve` to see; the proof does not need the journal to be up to date.
"""

from __future__ import annotations

from collections.abc import Iterable

from llama_index_bedrock_sessions._bedrock.errors import NotFound, RequestRejected
from llama_index_bedrock_sessions._conversation.continuation import Continuation, Resolve, noop
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import ConversationSessions
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.ids import Home, claim_place
from llama_index_bedrock_sessions._journal.model import Change

CLAIM_LOOKS = 3
"""Times to get a claim whose invocation another process has created: it may be about to be written.

Of 150 pairs of loaders at once, 7 % closed a session in vain with three looks, and 27 % with one.
"""


def claim(reader: Reader, writer: Writer, continuation: Continuation, of: str, resolve: Resolve) -> Change | None:
    """Write what `resolve` returns, unless another process claims `of` (one of our ids): return its change.

    Of all processes that call this, at most one gets None for a change that it has written.
    """
    sessions = reader.sessions
    for journal in writer.writable():
        head = journal.heads[0]
        try:
            before = claims(sessions, of, journal.plan.parents())
            draft = resolve(journal)
            if before or draft is None:
                return next(iter(before), None)
            home = Home(head, *claim_place(of, head))
            if not sessions.client.create_invocation(*home[:2]):
                found = (change for _ in range(CLAIM_LOOKS) for change in claims(sessions, of, [head]))
                if other := next(found, None):
                    return other
                continuation.continue_in_new_session(journal, noop)
                continue
            composed = journal.compaction.claim_step(home, draft, sessions.now())
            with sessions.effect():
                sessions.client.put(home, journal.clock.ms, composed.payload)
        except (NotFound, RequestRejected) as refusal:
            writer.after_refusal(journal, refusal)
            continue
        journal.stored(composed)
        sessions.last_ms = max(sessions.last_ms, journal.clock.ms)
        return next(iter(claims(sessions, of, reader.others(journal))), None)
    return None


def claims(sessions: ConversationSessions, of: str, among: Iterable[str]) -> list[Change]:
    """Return the claims that are in some sessions, however late they are listed."""
    found = sessions.client.fetch(Home(session, *claim_place(of, session)) for session in among)
    steps = [read_step(home, *step, skip_newer=sessions.settings.skip_newer) for home, step in found if step]
    return [change for step in steps for _, change in step.contents[:1] if change]
