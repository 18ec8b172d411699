"""What the service does where AWS has not said: one named switch per unknown, as data.

A program that is correct under every setting does not depend on a guess. `Behaviour.choices()` lists the settings,
so that a test suite can run over them; `Behaviour.load` reads what was found out against a real account.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

_Refusal = Literal["ConflictException", "ValidationException", "409"]

_SECONDS = ("steps_listed_after_seconds", "sessions_listed_after_seconds")

# Lowest and highest value of each setting that is a whole number; None: no limit.
_RANGES: dict[str, tuple[int, int | None]] = {
    "default_page_size": (1, 1000),
    "largest_page": (1, 1000),
    "steps_per_session": (1, None),
    "step_bytes": (1, None),
    "images_per_step": (0, None),
    "image_bytes": (1, None),
    "image_pixels": (1, None),
    "sessions_per_account": (0, None),
    "invocations_per_session": (0, None),
}


class BehaviourError(ValueError):
    """A setting of `Behaviour` has a value it does not know."""


@dataclass(frozen=True)
class Behaviour:
    """How the emulated service decides what AWS leaves open. Frozen; `dataclasses.replace` makes a variant.

    *Documented* is what AWS says in the Bedrock user guide or the service model, *inferred* what follows from it,
    *unknown* everything else: there the default is the likeliest answer, and no program should rely on it.
    Raises `BehaviourError` (a ValueError) for a value that is not among those listed.
    """

    write_to_ended: _Refusal = "ConflictException"
    """CreateInvocation and PutInvocationStep in an ENDED session. That they fail is documented, the error unknown.

    "409" here and below: an answer of that status without an error type, which the model does not have.
    """

    write_to_expired: Literal[
        "ConflictException", "ValidationException", "ResourceNotFoundException", "409", "accepted"
    ] = "ConflictException"
    """The same in an EXPIRED session. Unknown; "accepted" makes the session ACTIVE again."""

    update_when_closed: Literal["as a write", "accepted"] = "as a write"
    """UpdateSession of an ENDED or EXPIRED session. Unknown. "accepted" changes the metadata and revives nothing."""

    delete_active: _Refusal = "ConflictException"
    """DeleteSession of an ACTIVE session. That it fails is documented, the error unknown."""

    end_when_closed: Literal["accepted", "ConflictException", "ValidationException", "409"] = "accepted"
    """EndSession of an ENDED or EXPIRED session. Unknown; "accepted" makes an EXPIRED session ENDED."""

    known_step_id: Literal["ConflictException", "overwrite", "no-op"] = "ConflictException"
    """PutInvocationStep with an invocationStepId that exists. Unknown."""

    step_ids_unique_per: Literal["session", "account", "invocation"] = "session"
    """Where an invocationStepId counts as existing. Unknown. An overwritten step of another place moves here."""

    step_order: Literal["time", "arrival", "ascending", "id", "shuffled"] = "time"
    """ListInvocationSteps. Newest first within an invocation was seen; the sort key is unknown.

    "time": (invocationStepTime, arrival) descending; "arrival": descending; "ascending": (invocationStepTime,
    arrival); "id": invocationStepId descending; "shuffled": newest first within each invocation, the invocations
    in no order.
    """

    session_order: Literal["newest", "oldest", "id"] = "newest"
    """ListSessions. Unknown. By creation, or in the order of the random ids."""

    default_page_size: int = 100
    """Entries of a page when maxResults is not given, 1 to 1000. Unknown."""

    largest_page: int = 1000
    """Most entries of a page whatever maxResults says, 1 to 1000. Unknown; 1000 serves what was asked for."""

    pages: Literal["full", "short", "empty"] = "full"
    """Whether a page with a nextToken holds all it could. Unknown: nothing is promised.

    "short": half of it; "empty": every other page is empty and has a nextToken.
    """

    steps_listed_after_seconds: float = 0.0
    """Seconds of the emulator's clock for which ListInvocationSteps does not show a new step. Unknown; 0 was seen.

    GetInvocationStep returns the step at once. Each step keeps the time that was set when it was written; a list under
    the setting 0 shows all steps. While the clock is stopped, a step becomes listed only when the clock is moved.
    """

    sessions_listed_after_seconds: float = 0.0
    """Seconds of the emulator's clock for which ListSessions does not show a new session. Unknown.

    GetSession returns the session at once. The rest is as for steps.
    """

    late_lists: Literal["exactly", "up to"] = "exactly"
    """Whether the two settings above hold exactly, or each entry is late by its own pseudo-random time up to that.

    Unknown.
    """

    step_quota_error: Literal["ServiceQuotaExceededException", "ValidationException", "409"] = (
        "ServiceQuotaExceededException"
    )
    """The answer to one step more than a session takes. The limit is documented, the error unknown."""

    step_size_error: Literal["ValidationException", "ServiceQuotaExceededException", "413"] = "ValidationException"
    """The answer to a step that is too large. The limit is documented, the error unknown; "413" has no error type."""

    step_size_counts: Literal["encoded", "decoded"] = "encoded"
    """What `step_bytes` limits: the request's body, or its texts in UTF-8 and the bytes of its images. Unknown."""

    image_error: Literal["ValidationException", "ServiceQuotaExceededException"] = "ValidationException"
    """The answer to too many or too large images. The limits are documented, the error unknown."""

    image_content: Literal["unchecked", "checked"] = "unchecked"
    """Whether bytes that are no image of the stated format are refused with ValidationException. Unknown."""

    image_in_s3: Literal["unchecked", "ValidationException", "AccessDeniedException"] = "unchecked"
    """The answer to an image in S3 that the service may not read. Unknown; the emulator reads none."""

    update_metadata: Literal["replace", "merge"] = "replace"
    """What UpdateSession does to metadata it does not name. Unknown, replace is inferred."""

    idle_timer_reset_by: Literal["writes", "any call", "nothing"] = "writes"
    """What keeps a session from expiring an hour later (documented). Unknown.

    "writes": CreateInvocation, PutInvocationStep and UpdateSession that succeed; "any call": reads too.
    """

    retention_from: Literal["creation", "last update"] = "creation"
    """From when the 30 days of retention (documented) count. Unknown."""

    put_moves_last_updated_at: bool = True
    """Whether CreateInvocation and PutInvocationStep change the session's lastUpdatedAt. Unknown."""

    time_precision: Literal["microseconds", "milliseconds", "seconds"] = "microseconds"
    """Fraction digits of the times in answers. Unknown."""

    more_members: Literal["none", "null and unknown"] = "none"
    """What an answer holds besides the members it has a value for. Unknown.

    "null and unknown": the optional ones as null, and in every structure one the model does not name.
    """

    error_type_header: Literal["name", "name and uri"] = "name"
    """Form of `x-amzn-ErrorType`: both were seen on AWS."""

    steps_per_session: int = 1000
    """Invocation steps a session takes, across its invocations. Documented; lower it for short tests."""

    step_bytes: int = 50_000_000
    """Largest step in bytes. Documented as 50 MB, taken as decimal because that is the stricter reading."""

    images_per_step: int = 20
    """Most images of a step. Documented."""

    image_bytes: int = 3_750_000
    """Largest image in bytes. Documented as 3.75 MB, taken as decimal because that is the stricter reading."""

    image_pixels: int = 8000
    """Largest width and height of an image in pixels. Documented; images in S3 are not measured."""

    sessions_per_account: int | None = None
    """Most sessions at a time; CreateSession answers ServiceQuotaExceededException. Unknown; None: no limit."""

    invocations_per_session: int | None = None
    """Most invocations of a session; likewise. Unknown; None: no limit."""

    def __post_init__(self) -> None:
        choices = Behaviour.choices()
        for field in fields(self):
            _check(field.name, getattr(self, field.name), choices.get(field.name))

    @classmethod
    def choices(cls) -> dict[str, tuple[str | bool, ...]]:
        """Return the accepted values of every setting that is not a number, default first."""
        return dict(_choices())

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Behaviour":
        """Make a `Behaviour` of named settings; those not named keep their default.

        Raises `BehaviourError` for a name or a value that is not known.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            close = get_close_matches(unknown[0], known, n=1)
            meant = f" Did you mean {close[0]}?" if close else f" There are {', '.join(known)}."
            raise BehaviourError(f"unknown behaviour settings: {', '.join(unknown)}.{meant}")
        return cls(**settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Behaviour":
        """Read a profile: a file with a JSON object of settings; those not named keep their default.

        Raises `BehaviourError`, which names the file, if it is not that, and OSError if it cannot be read.
        """
        try:
            settings = json.loads(Path(path).read_text("utf-8"), object_pairs_hook=_no_name_twice)
        except (ValueError, RecursionError) as error:
            raise BehaviourError(f"{path}: not JSON in UTF-8: {error}") from None
        if not isinstance(settings, dict):
            raise BehaviourError(f"{path}: not a JSON object of settings, but {type(settings).__name__}")
        try:
            return cls.from_dict(settings)
        except BehaviourError as error:
            raise BehaviourError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, str | float | bool | None]:
        """Return every setting by name; `from_dict` takes it back."""
        return asdict(self)


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ValueError("a name is there twice")
    return settings


@lru_cache(maxsize=1)
def _choices() -> tuple[tuple[str, tuple[str | bool, ...]], ...]:
    hints = get_type_hints(Behaviour)
    found: list[tuple[str, tuple[str | bool, ...]]] = []
    for field in fields(Behaviour):
        hint = hints[field.name]
        if hint is bool:
            found.append((field.name, (True, False)))
        elif get_origin(hint) is Literal:
            default: Any = field.default
            found.append((field.name, (default, *(value for value in get_args(hint) if value != default))))
    return tuple(found)


def _check(name: str, value: object, accepted: tuple[str | bool, ...] | None) -> None:
    if accepted is not None:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in accepted):
            listed = ", ".join(repr(choice) for choice in accepted)
            raise BehaviourError(f"{name}={value!r}: accepted are {listed}")
        return
    if name in _SECONDS:
        # No math.isfinite: it raises OverflowError for a large int.
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise BehaviourError(f"{name}={value!r}: accepted are finite numbers of seconds from 0")
        return
    lowest, highest = _RANGES[name]
    if value is None and getattr(Behaviour, name) is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest or (highest and value > highest):
        limit = f"from {lowest} to {highest}" if highest else f"from {lowest}"
        raise BehaviourError(f"{name}={value!r}: accepted are whole numbers {limit}")
