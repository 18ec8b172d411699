"""The tables of `_bedrock/errors.py`: each rule is reached, and its message names what failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import botocore.exceptions as aws
import pytest
from botocore.parsers import ResponseParserError

from llama_index_bedrock_sessions._bedrock.errors import (
    BEDROCK,
    Outcome,
    RequestRejected,
    Rule,
    Source,
    key_value_store,
    s3,
    translate,
)

SOURCES = (BEDROCK, s3("a-bucket", "chats"), key_value_store("RedisKVStore"))
BOTO3: dict[type[Exception], Exception] = {
    aws.ProfileNotFound: aws.ProfileNotFound(profile="p"),
    aws.CredentialRetrievalError: aws.CredentialRetrievalError(provider="p", error_msg="m"),
    aws.PartialCredentialsError: aws.PartialCredentialsError(provider="p", cred_var="v"),
    aws.TokenRetrievalError: aws.TokenRetrievalError(provider="p", error_msg="m"),
    aws.SSOTokenLoadError: aws.SSOTokenLoadError(error_msg="m"),
    aws.ParamValidationError: aws.ParamValidationError(report="r"),
    aws.EndpointConnectionError: aws.EndpointConnectionError(endpoint_url="u"),
    aws.ConnectTimeoutError: aws.ConnectTimeoutError(endpoint_url="u"),
    aws.HTTPClientError: aws.HTTPClientError(error="e"),
    aws.ConnectionError: aws.ConnectionError(error="e"),
    aws.IncompleteReadError: aws.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ResponseParserError: ResponseParserError("torn"),
}


def refusal(code: str, status: int = 400, retries: int = 0) -> aws.ClientError:
    """Return an answer of AWS that is an error."""
    metadata: Any = {"HTTPStatusCode": status, "RetryAttempts": retries}
    return aws.ClientError({"Error": {"Code": code, "Message": "why"}, "ResponseMetadata": metadata}, "DoIt")


def examples(rule: Rule) -> Iterator[Exception]:
    """Yield errors that a rule is for."""
    yield from (refusal(code) for code in (*rule.codes, *rule.prefixes))
    yield from (refusal("Other", status) for status in list(rule.statuses)[:1])
    for kind in rule.classes:
        yield refusal("Other") if kind is aws.ClientError else BOTO3[kind] if kind in BOTO3 else kind()
    yield from (type(name, (Exception,), {})("driver") for name in rule.names)
    if rule.phrase:
        yield Exception(rule.phrase)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.service)
def test_each_rule_is_reached(source: Source) -> None:
    """No rule is hidden by one before it, and no message has a gap."""
    for rule in source.rules:
        for example in examples(rule):
            error = translate(example, source, operation="DoIt", writes=True)
            assert type(error) is rule.error, example
            assert str(error)
            assert "{" not in str(error)
            assert error.may_have_happened is (rule.outcome is Outcome.OPEN)


def test_an_error_after_retries_may_have_happened() -> None:
    """A refusal is of the last attempt alone: a write before it may have been carried out, a read changes nothing."""
    for code in ("ExpiredToken", "AccessDenied", "Throttling"):
        retried = refusal(code, 400, retries=1)
        assert translate(retried, BEDROCK, writes=True).may_have_happened
        assert not translate(retried, BEDROCK).may_have_happened
        assert not translate(refusal(code), BEDROCK, writes=True).may_have_happened


def test_messages_name_the_source_the_reason_and_the_remedy() -> None:
    """A message names what failed, why, and what to do; one without a text of the service reads well too."""
    remedies = [
        "bedrock:DoIt on the sessions",
        "s3:PutObject on the bucket 'a-bucket' below 'chats/'",
        "the key-value store of directory= (RedisKVStore) to read, put and delete.",
    ]
    for source, remedy in zip(SOURCES, remedies, strict=True):
        error = str(translate(refusal("AccessDenied"), source, action="s3:PutObject"))
        assert error.startswith(f"AWS does not allow s3:PutObject (AccessDenied): why. Allow {remedy}")
    without_text = aws.ClientError({"Error": {"Code": "SlowDown"}}, "DoIt")
    assert (
        str(translate(without_text, SOURCES[1])) == "S3 throttled DoIt, even after retries (SlowDown). Try again later."
    )


def test_a_status_stands_for_a_missing_code() -> None:
    """A proxy answers without a code."""
    error = translate(refusal("", 409), BEDROCK)
    assert isinstance(error, RequestRejected)
    assert error.code == "409"


def test_a_prefix_may_contain_braces() -> None:
    """The prefix of a bucket stands in the message unchanged."""
    denied = translate(refusal("AccessDenied", 403), s3("a-bucket", "{team}"), action="s3:PutObject")
    assert "below '{team}/'" in str(denied)
