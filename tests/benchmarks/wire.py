"""Servers in processes of their own, and a wire to each that counts and delays what it carries.

    python -m tests.benchmarks.wire PORT      carry to 127.0.0.1:PORT; its own port is the first line it prints

What is counted is the same for every protocol in which a client asks and then waits: a call begins when a client sends
after the server has spoken, however many packets either needs, and its bytes are all that was sent, headers too. Each
call waits once for the latency. The wire is a process of its own, so that it takes no time from who is measured.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EMULATOR = """
import sys
from llama_index_bedrock_sessions.emulator import Emulator
with Emulator() as emulator, emulator.serve() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""
MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
# moto has no long-term memory of AgentCore: it answers as a memory without strategies does, which finds nothing.
AGENTCORE = (
    """
from moto.bedrockagentcore.responses import BedrockAgentCoreResponse
from moto.core.responses import ActionResult
BedrockAgentCoreResponse.retrieve_memory_records = lambda self: ActionResult({"memoryRecordSummaries": []})
"""
    + MOTO
)


@contextmanager
def _running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, **pipes)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@contextmanager
def serving(script: str) -> Iterator[int]:
    """Run a Python script that prints its port and serves until its standard input ends; give the port."""
    with _running([sys.executable, "-c", script]) as process:
        yield int(_line(process))


@contextmanager
def redis() -> Iterator[int]:
    """Run a Redis server that keeps nothing on disk; give its port. Raises FileNotFoundError where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("needs redis-server, of the package redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder]
        with _running(command) as process:
            while "Ready to accept connections" not in (line := _line(process)):
                assert line or process.poll() is None
            yield port


class Wire:
    """A wire to a server of this machine: connect to its `port` instead of the server's."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(_line(process))

    def latency(self, seconds: float) -> None:
        """Let every call from now on take so much longer."""
        self._say(str(seconds))

    def count(self) -> tuple[int, int]:
        """Return the calls and the bytes since it was last asked."""
        calls, size = json.loads(self._say("count"))
        return calls, size

    def _say(self, text: str) -> str:
        assert self._process.stdin
        print(text, file=self._process.stdin, flush=True)
        return _line(self._process)


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    """Lay a wire to a port of this machine."""
    with _running([sys.executable, "-m", "tests.benchmarks.wire", str(port)]) as process:
        yield Wire(process)


class _Carrier:
    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._latency = 0.0
        self._calls = self._bytes = 0

    def carry(self, client: socket.socket) -> None:
        """Connect a client to the server, until one of the two hangs up."""
        server = socket.create_connection(("127.0.0.1", self._port))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking = threading.Event()
        for source, target, asks in ((client, server, True), (server, client, False)):
            threading.Thread(target=self._pass_on, args=(source, target, asks, asking), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool, asking: threading.Event) -> None:
        with suppress(OSError):  # either side may hang up at any time
            while data := source.recv(1 << 16):
                with self._lock:
                    begins = asks and not asking.is_set()
                    asking.set() if asks else asking.clear()
                    self._calls += begins
                    self._bytes += len(data)
                if begins and self._latency:
                    time.sleep(self._latency)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def answer(self, line: str) -> str:
        with self._lock:
            if line != "count":
                self._latency = float(line)
                return "ok"
            found = [self._calls, self._bytes]
            self._calls = self._bytes = 0
            return json.dumps(found)


def main() -> None:
    """Carry until the standard input ends; obey its lines: "count", or seconds of latency."""
    carrier = _Carrier(int(sys.argv[1]))
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            carrier.carry(listener.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{carrier.answer(line.strip())}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
