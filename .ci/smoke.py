"""What the built wheel must do without its sources, the `cli` extra, an account or a network."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import pathlib
import subprocess
import sys
import tempfile

from llama_index.core.llms import ChatMessage

import llama_index_bedrock_sessions as package
from llama_index_bedrock_sessions import BedrockSessionsChatStore

environment = pathlib.Path(sys.argv[1])
assert environment in pathlib.Path(package.__file__).parents, package.__file__
assert importlib.resources.files(package).joinpath("py.typed").is_file()
files = [str(file) for file in importlib.metadata.files("llama-index-bedrock-sessions") or []]
assert not [file for file in files if file.startswith(("tests", "examples"))], files

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "chats.db"
    BedrockSessionsChatStore.local(str(path)).add_message("user-42", ChatMessage("remember me"))
    read = BedrockSessionsChatStore.local(str(path)).get_messages("user-42")
assert read == [ChatMessage("remember me")], read

command = subprocess.run(  # noqa: S603 - our own command
    [environment / "bin" / "bedrock-sessions", "demo"], capture_output=True, text=True, check=False
)
assert command.returncode == 1, command
assert "pip install 'llama-index-bedrock-sessions[cli]'" in command.stderr, command.stderr
assert command.stderr.count("\n") == 1, command.stderr
print(f"{importlib.metadata.version('llama-index-bedrock-sessions')}: {len(files)} files, one round trip")
