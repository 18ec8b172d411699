"""Run the command `bedrock-sessions` as `python -m llama_index_bedrock_sessions.cli`."""

from __future__ import annotations

from llama_index_bedrock_sessions.cli.commands import main

main()
