"""Translate what boto3 raises into the errors of this package."""

from __future__ import annotations

from collections.abc import Iterator

import botocore.exceptions as aws

from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    RequestRefusedError,
    ThrottledError,
    UnavailableError,
)

BAD_CREDENTIALS = {
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "ExpiredToken",
    "InvalidClientTokenId",
    "IncompleteSignature",
    "MissingAuthenticationTokenException",
}


ATTEMPTS = 8


def attempts(failure: str) -> Iterator[int]:
    """Yield the number of each attempt; raise UnavailableError(`failure`) when `ATTEMPTS` were not enough."""
    yield from range(ATTEMPTS)
    raise UnavailableError(failure)


class NotFound(RequestRefusedError):  # noqa: N818 - a fact about a session
    """The session, or the step, does not exist (any more): a fact that is acted upon, and rarely an error."""


class RequestRejected(RequestRefusedError):  # noqa: N818 - an answer of the service
    """The service refused the request; `code` is its word for it. What it means is read from GetSession, never here."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self._message = message

    def __reduce__(self) -> tuple[type[RequestRejected], tuple[str, str]]:
        return type(self), (self.code, self._message)

    def error(self) -> RequestRefusedError:
        """Return it as an error for the caller."""
        return RequestRefusedError(f"Bedrock refused the request: {self}")


def client_error(error: aws.ClientError, *, writes: bool) -> Exception:
    body = error.response.get("Error", {})
    code, message = str(body.get("Code", "")), str(body.get("Message", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    # Of several attempts the last one is known to have been refused, no other.
    repeated = writes and int(metadata.get("RetryAttempts", 0)) > 0
    if code == "ResourceNotFoundException" or (status == 404 and code in {"404", ""}):
        return NotFound(message)
    if code in BAD_CREDENTIALS:
        return CredentialsError(
            f"AWS does not accept the credentials ({code}): {message} Renew or replace them.",
            may_have_happened=repeated,
        )
    if code.startswith("AccessDenied") or status == 403:
        return AccessDeniedError(
            f"AWS does not allow {error.operation_name} ({code}): {message} Allow bedrock:{error.operation_name} on "
            "the sessions of this account, and the use of the KMS key if one is set; the README has a policy to paste.",
            may_have_happened=repeated,
        )
    if code.startswith("Throttl") or status == 429:
        return ThrottledError(
            f"Bedrock throttled {error.operation_name} even after retries: {message}", may_have_happened=repeated
        )
    if status >= 500 or code == "InternalServerException":
        return UnavailableError(
            f"Bedrock failed in {error.operation_name} ({code}): {message}", may_have_happened=writes
        )
    return RequestRejected(code, message)


def other_aws_error(error: Exception, what: str) -> BedrockSessionsError | None:
    """Return what boto3 raised for another service of AWS as one of ours; None if it is none of boto3's.

    `what` says what failed, as the beginning of a sentence.
    """
    if isinstance(error, aws.BotoCoreError):
        return translated(error, writes=False, service=what)
    if not isinstance(error, aws.ClientError):
        return None
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in BAD_CREDENTIALS:
        return CredentialsError(f"{what}: AWS does not accept the credentials: {error}")
    if code.startswith("AccessDenied") or status == 403:
        return AccessDeniedError(f"{what}: AWS does not allow {error.operation_name}: {error}")
    if code.startswith("Throttl") or code in {"ProvisionedThroughputExceededException", "RequestLimitExceeded"}:
        return ThrottledError(f"{what} was throttled even after retries: {error}")
    if status >= 500:
        return UnavailableError(f"{what} failed: {error}")
    return ConfigurationError(f"{what} cannot be used as it is: {error}")


def translated(error: Exception, *, writes: bool, service: str = "Bedrock") -> BedrockSessionsError:
    """Return what botocore raised as an error of ours; `writes`: the request may have been carried out."""
    if isinstance(error, aws.NoRegionError):
        return ConfigurationError(
            "No AWS region is configured. Pass region_name=..., or set AWS_REGION, or a region in the profile. "
            "Without an AWS account, use BedrockSessionsChatStore.local(path)."
        )
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return CredentialsError(
            f"No usable AWS credentials: {error}. Configure them as for any boto3 program. "
            "Without an AWS account, use BedrockSessionsChatStore.local(path)."
        )
    if isinstance(error, (aws.TokenRetrievalError, aws.UnauthorizedSSOTokenError, aws.SSOTokenLoadError)):
        return CredentialsError(f"The AWS sign-in has expired: {error}")
    if isinstance(error, aws.ProfileNotFound):
        return ConfigurationError(f"{error}. Pass another profile_name=... or create the profile.")
    if isinstance(error, aws.ParamValidationError):
        return RequestRefusedError(f"boto3 refused the request: {error}")
    if isinstance(error, (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError)):
        begun = writes and not isinstance(error, (aws.EndpointConnectionError, aws.ConnectTimeoutError))
        return UnavailableError(f"{service} did not answer, even after retries: {error}", may_have_happened=begun)
    return ConfigurationError(f"The AWS client cannot be made: {error}")
