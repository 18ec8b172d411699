"""What can go wrong, split by whose fault it is.

    BedrockSessionsError
    ├── UsageError                    the call: change the code
    │   ├── ConfigurationError          (ValueError) arguments, region, a file that is no database
    │   ├── InvalidKeyError             (ValueError) not a string, empty, too long
    │   ├── InvalidMessageError         (TypeError)  not a ChatMessage
    │   ├── InvalidStateError           (TypeError)  not a JSON value
    │   ├── InvalidContextError         (ValueError) a workflow's context that cannot be saved, or be loaded as this one
    │   ├── AlreadyResumed              somebody has loaded the saved context: his is the run that goes on
    │   ├── InvalidPointError           (ValueError) not a change, a message or an aware time
    │   ├── StepTooLargeError           (ValueError) more than an invocation step holds
    │   ├── ForeignSessionError         the session belongs to another conversation or namespace
    │   ├── ConversationEnded           ended on purpose
    │   ├── ConversationExists          something is stored under the key already
    │   ├── SessionClosed               used by its id, and takes no more writes, or is gone
    │   ├── RequestRefusedError         Bedrock refuses what was sent; sending it again does not help
    │   └── DirectoryTooLarge           too many sessions to find one by scanning
    ├── AccountError                  the AWS account: change credentials, policy or key
    │   ├── CredentialsError            none found, incomplete, or expired
    │   └── AccessDeniedError           IAM or KMS refuses
    ├── ServiceError                  the service or the network: try again
    │   ├── ThrottledError              too many requests
    │   └── UnavailableError            no answer, or 5xx
    └── StoredDataError               what is stored
        └── NewerFormatError            written by a newer release of this library

Every error carries `retryable` (the same call may succeed later) and `may_have_happened` (the operation may have had
its effect: where it is False nothing was changed; where it is True, all but appends are safe to repeat).
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
    """The call cannot succeed as it is: the calling code has to change."""


class ConfigurationError(UsageError, ValueError):
    """The store was constructed with arguments that cannot work."""


class InvalidKeyError(UsageError, ValueError):
    """The key of a conversation is not a string of 1 to 5,000 characters (the service's limit for metadata)."""


class InvalidMessageError(UsageError, TypeError):
    """Something that is not a `ChatMessage` was given to be stored."""


class InvalidStateError(UsageError, TypeError):
    """A name or a value that named state cannot have: names are strings, values what JSON can say."""


class InvalidContextError(UsageError, ValueError):
    """The context of a workflow that JSON cannot say; or there is none of that name, or it is of another workflow."""


class AlreadyResumed(UsageError):  # noqa: N818 - reads as the state it reports
    """A saved context was loaded before: `by` (None if that was not said), `at` a time in ISO 8601."""

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
    """There is something under the key already: a fork needs a key of its own."""


class SessionClosed(UsageError):  # noqa: N818 - reads as the state it reports
    """A session that is used by its id takes no more writes or is gone, and is not continued in another."""


class RequestRefusedError(UsageError):
    """Bedrock refuses the content of a request, although the session takes others."""


class DirectoryTooLarge(UsageError):  # noqa: N818 - reads as the state it reports
    """There are more sessions in the account than a metadata scan should look through."""


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
    """What is stored cannot be used by this release."""


class NewerFormatError(StoredDataError):
    """A step was written by a newer release of this library."""
