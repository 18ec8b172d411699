"""The incident of `diagnostic_assistant`: its store, what the agent's tools return, and what the scripted model says.

With AWS_SESSIONS_REGION=us-west-2 in the environment the store is Amazon Bedrock's, encrypted with a key of yours if
there is AWS_SESSIONS_KEY=arn:aws:kms:... too, and with BEDROCK_MODEL=... the model is one of Bedrock's, which reads the
messages and calls the tools by its own judgement.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock

from llama_index_bedrock_sessions import AuditEvent, BedrockSessionsChatStore
from llama_index_bedrock_sessions.cli.demo import following, open_model, query_metrics, search_logs

REGION = os.environ.get("AWS_SESSIONS_REGION")
KEY_ARN = (
    os.environ.get("AWS_SESSIONS_KEY")
    if REGION
    else "arn:aws:kms:us-west-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)
"""The key that sessions are encrypted with; None for one that AWS manages."""
NAMESPACE = "incidents"

SLOWEST = "psql payments -c 'SELECT query, calls, mean_exec_time FROM pg_stat_statements ORDER BY 3 DESC LIMIT 1'"
PLAN = "psql payments -c 'EXPLAIN SELECT * FROM orders WHERE customer_id = 42'"
INDEX = "psql payments -c 'CREATE INDEX CONCURRENTLY orders_customer_id ON orders (customer_id)'"
CHECK = "psql payments -c 'EXPLAIN ANALYZE SELECT * FROM orders WHERE customer_id = 42'"
PRINTED = {
    "kubectl rollout history deployment/payments": "revision 41, deployed 6 days ago",
    "kubectl get configmap payments -o yaml": "pool.size: 20, pool.timeout: 30000, database: PostgreSQL 16",
    SLOWEST: "SELECT * FROM orders WHERE customer_id = $1 | 91,204 calls | 1,840 ms",
    PLAN: "Seq Scan on orders, rows=41200000",
    INDEX: "CREATE INDEX",
    CHECK: "Index Scan using orders_customer_id, execution time: 3 ms",
}


def open_store(database: str, audit: Callable[[AuditEvent], None]) -> BedrockSessionsChatStore:
    """Open the store as each engineer's process does: nothing is shared but what the service holds."""
    if REGION:
        return BedrockSessionsChatStore(region_name=REGION, namespace=NAMESPACE, audit=audit)
    return BedrockSessionsChatStore.local(database, namespace=NAMESPACE, audit=audit)


def run_command(command: str) -> str:
    """Run a shell command on the bastion host."""
    return PRINTED.get(command, "not permitted in this example")


def _results(messages: Sequence[ChatMessage]) -> list[str]:
    """Give what the tools returned, in all the conversation."""
    return [message.content or "" for message in messages if message.role.value == "tool"]


def _measured(messages: Sequence[ChatMessage]) -> str:
    metrics, logs = (json.loads(text) for text in _results(messages)[:2])
    return (
        f"p99 was {metrics['median_before']} ms until {metrics['since']} and is {metrics['peak']:,} ms now. "
        f'{logs["lines"]} log lines say "{logs["contains"]}".'
    )


def _summed_up(messages: Sequence[ChatMessage]) -> str:
    pictures = sum(isinstance(block, ImageBlock) for message in messages for block in message.blocks)
    return f"{_measured(messages)} {pictures} screenshots show it. Found since: {'; '.join(_results(messages)[2:])}."


SCRIPT: dict[str, Any] = {
    "checkout is slow": [
        ("query_metrics", {"service": "payments", "metric": "latency_p99"}),
        ("search_logs", {"service": "payments", "contains": "Connection is not available"}),
        _measured,
    ],
    "Was anything deployed": [
        ("run_command", {"command": "kubectl rollout history deployment/payments"}),
        ("run_command", {"command": "kubectl get configmap payments -o yaml"}),
        lambda messages: f"Not lately: {_results(messages)[-2]}. The pool: {_results(messages)[-1]}.",
    ],
    "What do we know": [_summed_up],
    "slowest query": [
        ("run_command", {"command": SLOWEST}),
        ("run_command", {"command": PLAN}),
        lambda messages: f"{_results(messages)[-2]}. Every call reads the whole table: {_results(messages)[-1]}.",
    ],
    "Create the index": [
        ("run_command", {"command": INDEX}),
        ("run_command", {"command": CHECK}),
        lambda messages: f"Done. {_results(messages)[-1]}.",
    ],
}
"""What the scripted model does when it is asked so: it calls tools, and says what follows from all their results."""


def new_agent() -> FunctionAgent:
    """Make the assistant; what it remembers is not in it."""
    model = open_model(os.environ.get("BEDROCK_MODEL"), following(SCRIPT), region=REGION)
    return FunctionAgent(llm=model, tools=[query_metrics, search_logs, run_command])
