"""Read a conversation with boto3 alone: its texts and pictures are Bedrock's own content blocks.

    python raw_boto3.py chats.db                # the file of an embedded service, such as the demo leaves
    python raw_boto3.py --region us-west-2      # AWS
    python raw_boto3.py chats.db --save folder  # and write the pictures there

Nothing of the library is used, but for the embedded service's client; on AWS it is boto3's.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser(description="Print every conversation stored in Bedrock sessions.")
parser.add_argument("database", nargs="?", help="file of an embedded service")
parser.add_argument("--region", help="read from AWS instead")
parser.add_argument("--save", type=Path, help="folder to write the pictures to")
arguments = parser.parse_args()

if arguments.region:
    import boto3

    client: Any = boto3.client("bedrock-agent-runtime", region_name=arguments.region)
elif arguments.database and Path(arguments.database).is_file():
    from llama_index_bedrock_sessions.emulator import Emulator

    client = Emulator(arguments.database).client()
else:
    parser.error("name the file of an embedded service, or a --region")


def every(operation: str, member: str, **named: str) -> list[dict[str, Any]]:
    """Give all entries of a list, page after page."""
    return [entry for page in client.get_paginator(operation).paginate(**named) for entry in page[member]]


pictures = 0
for summary in sorted(every("list_sessions", "sessionSummaries"), key=lambda one: one["createdAt"]):
    named = {"sessionIdentifier": summary["sessionId"]}
    session = client.get_session(**named)
    print(f"session {session['sessionId']}, {session['sessionStatus']}, {session.get('sessionMetadata', {})}")
    steps = [
        client.get_invocation_step(
            **named, invocationIdentifier=step["invocationId"], invocationStepId=step["invocationStepId"]
        )["invocationStep"]
        for step in every("list_invocation_steps", "invocationStepSummaries", **named)
    ]
    for step in sorted(steps, key=lambda one: (one["invocationStepTime"], one["invocationStepId"])):
        print(f"  step {step['invocationStepId']}")
        for block in step["payload"]["contentBlocks"]:
            if "image" in block:
                content = block["image"]["source"]["bytes"]
                pictures += 1
                print(f"    image: {block['image']['format']}, {len(content)} bytes,", end=" ")
                print(f"sha256 {hashlib.sha256(content).hexdigest()}")
                if arguments.save:
                    arguments.save.mkdir(parents=True, exist_ok=True)
                    arguments.save.joinpath(f"{pictures}.{block['image']['format']}").write_bytes(content)
            elif block["text"].startswith('{"llama_index_bedrock_sessions"'):
                # What Bedrock has no block for, as JSON: roles, tool calls, and which earlier steps this one repeats.
                print(f"    envelope: {len(block['text'])} characters")
            else:
                print(f"    text: {block['text']}")
