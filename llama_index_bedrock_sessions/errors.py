"""The errors of this library, by whose fault they are.

    BedrockSessionsError
    ├── UsageError                    the call: change the code
    │   ├── ConfigurationError          (ValueError) arguments, region, a file that is not a database
    │   ├── InvalidKeyError             (ValueError) not a string, empty, too long
    │   ├── InvalidMessageError         (TypeError)  not a ChatMessage
    │   ├── InvalidStateError           (TypeError)  not a JSON value
    │   ├── InvalidContextError         (ValueError) a workflow's context that cannot be saved or loaded
    │   ├── AlreadyResumed              the saved context was loaded before, and continues there
    │   ├── InvalidPointError           (ValueError) not a change, a message or an aware time
    │   ├── StepTooLargeError           (ValueError) more than an invocation step holds
    │   ├── ForeignSessionError         the session belongs to another conversation or namespace
    │   ├── ConversationEnded           ended on purpose
    │   ├── ConversationExists          the key is in use
    │   ├── SessionClosed               used by its id, and takes no writes or was deleted
    │   ├── RequestRefusedError         Bedrock refuses the request; a retry does not help
    │   └── DirectoryTooLarge           too many sessions to find one by scanning
    ├── AccountError                  the AWS account: change credentials, policy or key
    │   ├── CredentialsError            none found, incomplete, or expired
    │   └── AccessDeniedError           IAM or KMS refuses
    ├── ServiceError                  the service or the network: try again
    │   ├── ThrottledError              too many requests
    │   └── UnavailableError            no answer, or 5xx
    └── StoredDataError               the stored data
        └── NewerFormatError            written by a newer release of this library

Every error has `retryable` (the same call can succeed later) and `may_have_happened`. If that is False, nothing was
changed. If it is True, the operation may have taken effect; every operation but an append can be repeated safely.
"""

from __future__ import annotations


class BedrockSessionsError(Exception):
    """Base of every error this library raises.

    `retryable`: the same call may succeed later. `may_have_happened`: the effect may already be stored.
    """

    retryable = False

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        super().__init__(message)
        self.may_have_happened = may_have_happened


class UsageError(BedrockSessionsError):
    """The call can never succeed: the calling code has to change."""


class ConfigurationError(UsageError, ValueError):
    """The store was constructed with arguments that cannot work."""


class InvalidKeyError(UsageError, ValueError):
    """The key of a conversation is not a string of 1 to 5,000 characters (the service's limit for metadata)."""


class InvalidMessageError(UsageError, TypeError):
    """A message to be stored is not a `ChatMessage`."""


class InvalidStateError(UsageError, TypeError):
    """Named state cannot have this name or value: names are strings, and JSON represents the values."""


class InvalidContextError(UsageError, ValueError):
    """JSON cannot represent the context, no context has this name, or the context is of another workflow."""


class AlreadyResumed(UsageError):  # noqa: N818 - reads as the state it reports
    """A saved context was loaded before. `by` is the name given then (or None), `at` the time in ISO 8601."""

    def __init__(self, message: str, *, by: str | None = None, at: str | None = None) -> None:
        super().__init__(message)
        self.by = by
        self.at = at


class InvalidPointError(UsageError, ValueError):
    """A point of a conversation that does not exist, or a time without a time zone."""


class StepTooLargeError(UsageError, ValueError):
    """A single content block exceeds what one invocation step can hold."""


class ForeignSessionError(UsageError):
    """A session belongs to another conversation, another namespace, or is encrypted with another key."""


class ConversationEnded(UsageError):  # noqa: N818 - reads as the state it reports
    """The conversation was ended on purpose and takes no messages."""


class ConversationExists(UsageError):  # noqa: N818 - reads as the state it reports
    """The key is in use: a fork needs an unused key."""


class SessionClosed(UsageError):  # noqa: N818 - reads as the state it reports
    """A session that is used by its id takes no writes or was deleted. It is never continued in another session."""


class RequestRefusedError(UsageError):
    """Bedrock refuses the content of a request, although the session takes others."""


class DirectoryTooLarge(UsageError):  # noqa: N818 - reads as the state it reports
    """The account has more sessions than a metadata scan may read (`scan_limit`)."""


class AccountError(BedrockSessionsError):
    """The AWS account refuses: credentials, policy or encryption key have to change."""


class CredentialsError(AccountError):
    """No usable AWS credentials were found."""


class AccessDeniedError(AccountError):
    """IAM or KMS does not allow the operation."""


class ServiceError(BedrockSessionsError):
    """The service or the network failed after all retries."""

    retryable = True


class ThrottledError(ServiceError):
    """The service throttled the request after all retries."""


class UnavailableError(ServiceError):
    """The service did not answer, or answered with a server error, after all retries."""


class StoredDataError(BedrockSessionsError):
    """This release cannot read the stored data."""


class NewerFormatError(StoredDataError):
    """A step was written by a newer release of this library."""
