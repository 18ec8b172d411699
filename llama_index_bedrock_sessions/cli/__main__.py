"""`python -m llama_index_bedrock_sessions.cli` is the command `bedrock-sessions`."""

from __future__ import annotations

from llama_index_bedrock_sessions.cli.commands import main

main()
