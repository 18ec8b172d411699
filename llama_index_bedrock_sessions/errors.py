"""The errors of this library, grouped by what has to change before the call can succeed.

    BedrockSessionsError
    ├── UsageError                    the calling code
    │   ├── ConfigurationError          (ValueError) invalid arguments or region; a file that is not a database
    │   ├── InvalidKeyError             (ValueError) the key is not a string, is empty, or is too long
    │   ├── InvalidMessageError         (TypeError)  the message is not a ChatMessage
    │   ├── InvalidStateError           (TypeError)  the name is not a string, or the value is not a JSON value
    │   ├── InvalidContextError         (ValueError) a workflow context cannot be saved, or cannot be loaded here
    │   ├── AlreadyResumed              the saved context was already loaded; that run continues it
    │   ├── InvalidPointError           (ValueError) the point is not a change, a message, or a time with a time zone
    │   ├── StepTooLargeError           (ValueError) the content does not fit into an invocation step
    │   ├── ForeignSessionError         the session belongs to another conversation or namespace
    │   ├── ConversationEnded           the application ended the conversation
    │   ├── ConversationExists          the key already has a conversation
    │   ├── SessionClosed               a session used by its id is closed to writes, or no longer exists
    │   ├── RequestRefusedError         Bedrock rejects the request; repeating it does not help
    │   └── DirectoryTooLarge           the account has too many sessions to find one by scanning
    ├── AccountError                  the AWS account: credentials, policy or encryption key
    │   ├── CredentialsError            no credentials, or incomplete or expired ones
    │   └── AccessDeniedError           IAM or KMS denies the operation
    ├── ServiceError                  nothing: the service or the network failed; try again
    │   ├── ThrottledError              too many requests
    │   └── UnavailableError            no answer, or a 5xx status
    └── StoredDataError               the stored data, or the release of this library that reads it
        └── NewerFormatError            a newer release of this library wrote the data

Every error has two flags:

- `retryable`: the same call may succeed later.
- `may_have_happened`: the operation may have taken effect. If it is False, nothing was changed. If it is True, it is
  safe to repeat any operation except an append.
"""

from __future__ import annotations


class BedrockSessionsError(Exception):
    """Base class of every error that this library raises.

    `retryable`: the same call may succeed later. `may_have_happened`: the operation may have taken effect.
    """

    retryable = False

    def __init__(self, message: str, *, may_have_happened: bool = False) -> None:
        super().__init__(message)
        self.may_have_happened = may_have_happened


class UsageError(BedrockSessionsError):
    """The call cannot succeed unchanged; the calling code has to change."""


class ConfigurationError(UsageError, ValueError):
    """The configuration is invalid: an argument, a region, or a file that is not a database."""


class InvalidKeyError(UsageError, ValueError):
    """The key of a conversation is not a string of 1 to 5,000 characters (the service's limit for metadata values)."""


class InvalidMessageError(UsageError, TypeError):
    """A message to be stored is not a `ChatMessage`."""


class InvalidStateError(UsageError, TypeError):
    """A name in named state is not a string, or its value is not a JSON value."""


class InvalidContextError(UsageError, ValueError):
    """A workflow context has no JSON form, no context has that name, or it belongs to another workflow."""


class AlreadyResumed(UsageError):  # noqa: N818 - reads as the state it reports
    """The saved context was already loaded.

    `by` is the name that the earlier call passed, or None. `at` is the time of that call, in ISO 8601.
    """

    def __init__(self, message: str, *, by: str | None = None, at: str | None = None) -> None:
        super().__init__(message)
        self.by = by
        self.at = at


class InvalidPointError(UsageError, ValueError):
    """A point does not exist in the conversation, or is a time without a time zone."""


class StepTooLargeError(UsageError, ValueError):
    """Content does not fit into one invocation step."""


class ForeignSessionError(UsageError):
    """A session belongs to another conversation or namespace, or is encrypted with another key."""


class ConversationEnded(UsageError):  # noqa: N818 - reads as the state it reports
    """The application has ended the conversation, so it takes no messages."""


class ConversationExists(UsageError):  # noqa: N818 - reads as the state it reports
    """The key already has a conversation; a fork needs an unused key."""


class SessionClosed(UsageError):  # noqa: N818 - reads as the state it reports
    """A session that is used by its id is closed to writes or no longer exists; no other session continues it."""


class RequestRefusedError(UsageError):
    """Bedrock rejects the content of this request; the session still takes other requests."""


class DirectoryTooLarge(UsageError):  # noqa: N818 - reads as the state it reports
    """The account has more sessions than a scan of their metadata may read."""


class AccountError(BedrockSessionsError):
    """The AWS account has to change: its credentials, its policy, or its encryption key."""


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
    """This release cannot use the stored data."""


class NewerFormatError(StoredDataError):
    """A newer release of this library wrote a step of the conversation."""
