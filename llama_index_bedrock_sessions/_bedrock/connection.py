"""How a store reaches AWS: credentials, timeouts, retries, and clients made with them."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import datetime
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.utils import parse_timestamp


@dataclasses.dataclass(frozen=True, repr=False)
class Connection:
    """The arguments of boto3 clients. None is boto3's default. `timeout` is in seconds."""

    region_name: str | None
    profile_name: str | None
    aws_access_key_id: str | None
    aws_secret_access_key: str | None
    aws_session_token: str | None
    botocore_session: Any
    botocore_config: Any
    timeout: float
    max_retries: int
    max_concurrency: int

    def client(self, service: str, *, endpoint_url: str | None = None, region_name: str | None = None) -> Any:
        """Return a new client of a service, without a call."""
        return self.session().client(
            service, config=self.config(), endpoint_url=endpoint_url, region_name=region_name or self.region_name
        )

    def config(self) -> Config:
        """Return the configuration of every client. The application's takes precedence over ours."""
        config = Config(
            connect_timeout=self.timeout,
            read_timeout=self.timeout,
            retries={"total_max_attempts": self.max_retries + 1, "mode": "standard"},
            max_pool_connections=self.max_concurrency,
            user_agent_extra="x-client-framework:llama_index",
        )
        return config if self.botocore_config is None else config.merge(self.botocore_config)

    def session(self) -> boto3.Session:
        """Return a new boto3 session with the credentials."""
        return boto3.Session(
            profile_name=self.profile_name,
            region_name=self.region_name,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            aws_session_token=self.aws_session_token,
            botocore_session=self.botocore_session or new_botocore_session(),
        )


def new_botocore_session() -> botocore.session.Session:
    """Return a botocore session whose clients parse timestamps quickly.

    botocore parses each timestamp with dateutil in 41 us, which is most of the time that a list of steps takes.
    `fromisoformat` needs 0.1 us (Python 3.11). botocore's own parser remains for other formats.
    """
    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp)
    return session


def timestamp(value: Any) -> datetime:
    """Parse a timestamp of a reply, with the result of botocore's parser."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(value)
            if found.tzinfo is not None:
                return found
    parsed: datetime = parse_timestamp(value)
    return parsed
