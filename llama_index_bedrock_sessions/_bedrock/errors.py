"""What AWS, S3 and the drivers of key-value stores raise, as errors of this package.

Each source of errors has a table of rules. The first rule that matches decides the class of our error, its message, and
whether the operation may have happened. `translate` reads the tables; no other module translates an error.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

import botocore.exceptions as aws
from botocore.parsers import ResponseParserError

from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    RequestRefusedError,
    ThrottledError,
    UnavailableError,
)

ATTEMPTS = 8


def attempts(failure: str) -> Iterator[int]:
    """Yield the number of each attempt; raise UnavailableError(`failure`) when `ATTEMPTS` were not enough."""
    yield from range(ATTEMPTS)
    raise UnavailableError(failure)


class NotFound(RequestRefusedError):  # noqa: N818 - a fact about a session
    """The session, or the step, does not exist (any more). The library acts upon it; callers rarely see it."""


class ObjectNotFound(UnavailableError):  # noqa: N818 - a fact about an object in S3
    """The object does not exist, or cannot be read in its storage class. The library acts upon it."""


class RequestRejected(RequestRefusedError):  # noqa: N818 - an answer of the service
    """The service refused the request; `code` is its name for the reason. GetSession shows what it means."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self._message = message

    def __reduce__(self) -> tuple[type[RequestRejected], tuple[str, str]]:
        return type(self), (self.code, self._message)

    def error(self) -> RequestRefusedError:
        """Return it as an error for the caller."""
        return RequestRefusedError(f"Bedrock refused the request: {self}")


class Outcome(enum.Enum):
    """Whether a write that failed may have been carried out."""

    NOTHING = enum.auto()
    """It was not."""
    IF_RETRIED = enum.auto()
    """The last attempt was refused; an attempt before it may have been carried out."""
    OPEN = enum.auto()
    """It may have been."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to raise for errors that match one of these.

    message: a format of the members of `Failure`, and of `service`, `bucket` and `allow` of the `Source`.
    codes, prefixes: error codes in the service's answer, and their beginnings.
    statuses: HTTP statuses of the answer.
    classes: what boto3 raised.
    names: classes of a driver, or bases of them, by name, because no driver is imported here.
    phrase: a part of a driver's message.
    """

    error: type[BedrockSessionsError]
    message: str
    outcome: Outcome = Outcome.NOTHING
    codes: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    statuses: range = range(0)
    classes: tuple[type[Exception], ...] = ()
    names: frozenset[str] = frozenset()
    phrase: str = ""

    def matches(self, failure: Failure) -> bool:
        """Whether this rule is for a failure."""
        return (
            failure.code in self.codes
            or (bool(self.prefixes) and failure.code.startswith(self.prefixes))
            or failure.status in self.statuses
            or isinstance(failure.error, self.classes)
            or not self.names.isdisjoint(failure.names)
            or (bool(self.phrase) and self.phrase in failure.first_line)
        )


@dataclasses.dataclass(frozen=True)
class Failure:
    """The facts of an error, for the rules and their messages."""

    error: Exception
    operation: str
    """The operation of the API."""
    action: str
    """The permission that it needs."""
    code: str
    status: int
    text: str
    """The message of the service, boto3 or the driver."""
    was_retried: bool

    @property
    def names(self) -> set[str]:
        """The names of the error's class and its bases, and of those of the driver's error that SQLAlchemy wraps."""
        errors = (self.error, getattr(self.error, "orig", None))
        return {each.__name__ for error in errors for each in type(error).__mro__}

    @property
    def reason(self) -> str:
        """The code and the message of an answer, as the end of a sentence."""
        text = self.text if self.text.endswith((".", "!", "?")) or not self.text else f"{self.text}."
        return f"({self.code}): {text}" if text else f"({self.code})."

    @property
    def first_line(self) -> str:
        """The class and the first line of a driver's error: SQLAlchemy adds the statement and its parameters."""
        return f"{type(self.error).__name__}: {self.text.partition(chr(10))[0]}"


@dataclasses.dataclass(frozen=True)
class Source:
    """What failed, and the rules for it. `allow` is what to do where access is denied, a format of `Failure`."""

    service: str
    rules: tuple[Rule, ...]
    allow: str
    bucket: str = ""


AWS_ERRORS = (aws.ClientError, aws.BotoCoreError, ResponseParserError)
"""What an operation of boto3 raises."""
WITHOUT_ACCOUNT = "Without an AWS account, use BedrockSessionsChatStore.local(path)."
NO_CLIENT = "The AWS client cannot be made: {text}"
REFUSALS = (
    Rule(
        CredentialsError,
        "{service} does not accept the AWS credentials {reason} Renew or replace them.",
        Outcome.IF_RETRIED,
        codes=frozenset(
            {
                "ExpiredToken",
                "ExpiredTokenException",
                "IncompleteSignature",
                "InvalidAccessKeyId",
                "InvalidClientTokenId",
                "InvalidSignatureException",
                "InvalidToken",
                "MissingAuthenticationTokenException",
                "SignatureDoesNotMatch",
                "UnrecognizedClientException",
            }
        ),
    ),
    Rule(
        AccessDeniedError,
        "AWS does not allow {action} {reason} {allow}",
        Outcome.IF_RETRIED,
        prefixes=("AccessDenied", "KMS."),
        statuses=range(403, 404),
    ),
    Rule(
        ThrottledError,
        "{service} throttled {operation}, even after retries {reason} Try again later.",
        Outcome.IF_RETRIED,
        codes=frozenset(
            {
                "ProvisionedThroughputExceededException",
                "RequestLimitExceeded",
                "SlowDown",
                "TooManyRequestsException",
            }
        ),
        prefixes=("Throttl",),
        statuses=range(429, 430),
    ),
    Rule(
        UnavailableError,
        "{service} failed in {operation} {reason} Try again later.",
        Outcome.OPEN,
        codes=frozenset({"InternalError", "InternalServerException", "RequestTimeout", "ServiceUnavailable"}),
        statuses=range(500, 600),
    ),
)
"""Answers of any service of AWS."""
BOTO3 = (
    Rule(
        ConfigurationError,
        "No AWS region is configured. Pass region_name=..., or set AWS_REGION, or a region in the profile. "
        + WITHOUT_ACCOUNT,
        classes=(aws.NoRegionError,),
    ),
    Rule(
        CredentialsError,
        "No usable AWS credentials: {text}. Configure them as for any boto3 program. " + WITHOUT_ACCOUNT,
        classes=(aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError),
    ),
    Rule(
        CredentialsError,
        "The AWS sign-in has expired: {text}. Sign in again.",
        classes=(aws.TokenRetrievalError, aws.UnauthorizedSSOTokenError, aws.SSOTokenLoadError),
    ),
    Rule(
        ConfigurationError,
        "{text}. Pass another profile_name=... or create the profile.",
        classes=(aws.ProfileNotFound,),
    ),
    Rule(RequestRefusedError, "boto3 refused the request: {text}", classes=(aws.ParamValidationError,)),
    Rule(
        UnavailableError,
        "{service} did not answer, even after retries: {text}",
        classes=(aws.EndpointConnectionError, aws.ConnectTimeoutError),
    ),
    Rule(
        UnavailableError,
        "{service} did not answer, even after retries: {text}",
        Outcome.OPEN,
        classes=(aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError),
    ),
    Rule(
        UnavailableError,
        "The answer of {service} to {operation} cannot be read: {text}",
        Outcome.OPEN,
        classes=(ResponseParserError,),
    ),
    Rule(ConfigurationError, NO_CLIENT, classes=(aws.BotoCoreError,)),
)
"""What boto3 raises without an answer of the service."""

BEDROCK = Source(
    "Bedrock",
    (
        Rule(NotFound, "{text}", codes=frozenset({"ResourceNotFoundException", "404"})),
        *REFUSALS,
        # The message is the code and the text.
        Rule(RequestRejected, "", classes=(aws.ClientError,)),
        *BOTO3,
        Rule(ConfigurationError, NO_CLIENT, classes=(Exception,)),
    ),
    "Allow bedrock:{operation} on the sessions of this account, and the use of the KMS key if one is set; the README "
    "has a policy to paste.",
)

_S3_RULES = (
    Rule(
        ConfigurationError,
        "There is no bucket {bucket!r}: create it, or give S3MediaStore another.",
        codes=frozenset({"NoSuchBucket"}),
    ),
    Rule(ObjectNotFound, "S3 has no such object {reason}", codes=frozenset({"404", "InvalidObjectState", "NoSuchKey"})),
    Rule(
        ConfigurationError,
        "The bucket {bucket!r} is in another region ({code}): give S3MediaStore its region_name=.",
        codes=frozenset(
            {"301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
        ),
    ),
    *REFUSALS,
    Rule(
        RequestRefusedError,
        "A file was changed while it was being stored; store it again.",
        codes=frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}),
    ),
    Rule(RequestRefusedError, "S3 refused {operation} {reason}", classes=(aws.ClientError,)),
    *BOTO3,
    Rule(ConfigurationError, NO_CLIENT, classes=(Exception,)),
)


def s3(bucket: str, prefix: str) -> Source:
    """Return S3 as the source of errors about a bucket."""
    where = f"the bucket {bucket!r} below {prefix + '/'!r}".replace("{", "{{").replace("}", "}}")
    allow = f"Allow {{action}} on {where}, and the use of the KMS key if one is set; the README has a policy to paste."
    return Source("S3", _S3_RULES, allow, bucket)


_KEY_VALUE_RULES = (
    *REFUSALS,
    Rule(
        ConfigurationError,
        "{service} refused {operation} {reason} Check how it was made.",
        classes=(aws.ClientError,),
    ),
    *BOTO3,
    Rule(
        CredentialsError,
        "{service} does not accept its credentials: {first_line}",
        names=frozenset({"AuthenticationError"}),
        phrase="authentication failed",
    ),
    Rule(
        AccessDeniedError,
        "{service} may not be used: {first_line}. {allow}",
        names=frozenset({"InsufficientPrivilege", "NoPermissionError"}),
    ),
    Rule(
        ConfigurationError,
        "{service} cannot be used: {first_line}. Check how it was made.",
        names=frozenset(
            {
                "ArgumentError",
                "AttributeError",
                "ImportError",
                "NoSuchModuleError",
                "NotImplementedError",
                "ProgrammingError",
                "TypeError",
                "ValueError",
            }
        ),
    ),
    Rule(UnavailableError, "{service} failed: {first_line}", classes=(Exception,)),
)


def key_value_store(kind: str) -> Source:
    """Return a key-value store as the source of errors; `kind` is the name of its class."""
    store = f"key-value store of directory= ({kind})"
    return Source(f"The {store}", _KEY_VALUE_RULES, f"Allow the {store} to read, put and delete.")


def translate(
    error: Exception, source: Source, *, operation: str = "", action: str | None = None, writes: bool = False
) -> BedrockSessionsError:
    """Return our error for what a source raised.

    operation: the operation of the API that was called; a `ClientError` names it itself.
    action: the permission it needs, where that is not the operation.
    writes: the request changes something, so it may have happened although it failed.
    """
    failure = _failure(error, operation, action)
    rule = next(rule for rule in source.rules if rule.matches(failure))
    if rule.error is RequestRejected:
        return RequestRejected(failure.code, failure.text)
    facts = {name: getattr(failure, name) for name in ("operation", "action", "code", "text", "reason", "first_line")}
    facts |= {"service": source.service, "bucket": source.bucket, "allow": source.allow.format(**facts)}
    is_open = rule.outcome is Outcome.OPEN or (rule.outcome is Outcome.IF_RETRIED and failure.was_retried)
    return rule.error(rule.message.format(**facts), may_have_happened=writes and is_open)


def _failure(error: Exception, operation: str, action: str | None) -> Failure:
    if not isinstance(error, aws.ClientError):
        return Failure(error, operation, action or operation, "", 0, str(error), was_retried=False)
    body, metadata = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    return Failure(
        error,
        error.operation_name,
        action or error.operation_name,
        str(body.get("Code") or status or ""),
        status,
        str(body.get("Message", "")),
        was_retried=int(metadata.get("RetryAttempts", 0)) > 0,
    )
