"""A scheduled Lambda function that keeps conversations alive which nobody writes to: run it once a week.

Bedrock deletes a session 30 days after it was made. `renew()` lets every conversation whose newest session is older
than ten days go on in a new one, with all that is in it. The function needs the policy of the README, a timeout of
some minutes, and the store configured exactly as in the application.

    aws scheduler create-schedule --name renew-conversations --schedule-expression "rate(7 days)" ...

Try it without AWS:  python examples/renew_lambda.py
"""

from __future__ import annotations

import os
from typing import Any

from llama_index_bedrock_sessions import BedrockSessionsChatStore

# On Lambda boto3 finds region and credentials by itself; elsewhere this is the embedded service.
namespace = os.environ.get("NAMESPACE", "default")
if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
    store = BedrockSessionsChatStore(namespace=namespace)
else:
    store = BedrockSessionsChatStore.local(namespace=namespace)


def handler(event: dict[str, Any], context: Any) -> dict[str, int]:  # noqa: ARG001 - Lambda's signature
    """Renew what is old enough; raise if some could not be renewed, so that the schedule's alarm rings."""
    done = store.renew()
    if done.failed:
        errors = ", ".join(sorted({type(error).__name__ for error in done.failed.values()}))
        raise RuntimeError(f"{len(done.failed)} conversations were not renewed: {errors}")
    return {"renewed": len(done.keys)}


if __name__ == "__main__":
    print(handler({}, None))
