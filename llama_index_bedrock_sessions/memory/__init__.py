"""Agent memory: LlamaIndex's `Memory` on conversations, and the chat store for it."""
