"""The command `bedrock-sessions`."""
