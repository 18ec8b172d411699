"""LlamaIndex's `Memory` on Bedrock sessions, and the chat store that it uses."""
