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

from .behaviour import Behaviour, BehaviourError
from .calls import Call, Calls
from .clock import Clock
from .database import ClosedError, EmulatorError, NewerFileError, NotOurFileError, UnusablePathError
from .embedded import Emulator
from .faults import FAULTS, Faults, Fired
from .server import Server, run
from .shapes import AnswerError

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
