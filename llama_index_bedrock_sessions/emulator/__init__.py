"""Amazon Bedrock sessions on this machine: the 14 operations of session management, without an AWS account.

    with Emulator("chats.db") as emulator:
        client = emulator.client()                       # a real boto3 client, nothing leaves the process
        session_id = client.create_session()["sessionId"]
        emulator.clock.advance(3600)                     # the session has EXPIRED
        emulator.faults.add("GetSession", 1, "throttle") # the next call of it fails

It follows AWS's documentation and botocore's model of the service; where AWS has not said what happens, `Behaviour`
has a switch. It checks what the service would check and keeps what the service would keep, and knows nothing of
LlamaIndex: any program that uses boto3 can be tried on it.
"""

from llama_index_bedrock_sessions.emulator.behaviour import Behaviour, BehaviourError
from llama_index_bedrock_sessions.emulator.calls import Call, Calls
from llama_index_bedrock_sessions.emulator.clock import Clock
from llama_index_bedrock_sessions.emulator.database import (
    ClosedError,
    EmulatorError,
    NewerFileError,
    NotOurFileError,
    UnusablePathError,
)
from llama_index_bedrock_sessions.emulator.embedded import Emulator, run
from llama_index_bedrock_sessions.emulator.faults import FAULTS, Faults, Fired
from llama_index_bedrock_sessions.emulator.server import Server
from llama_index_bedrock_sessions.emulator.shapes import AnswerError

__all__ = [
    "FAULTS",
    "AnswerError",
    "Behaviour",
    "BehaviourError",
    "Call",
    "Calls",
    "Clock",
    "ClosedError",
    "Emulator",
    "EmulatorError",
    "Faults",
    "Fired",
    "NewerFileError",
    "NotOurFileError",
    "Server",
    "UnusablePathError",
    "run",
]

for _name in __all__:
    if hasattr(_public := globals()[_name], "__module__"):
        _public.__module__ = __name__
