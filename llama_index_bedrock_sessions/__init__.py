"""LlamaIndex chat messages and agent memory on Amazon Bedrock sessions."""

from llama_index_bedrock_sessions._bedrock.media import S3MediaStore
from llama_index_bedrock_sessions._conversation.contexts import SavedContext
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._journal.history import Entry, Record
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore, RenewResult
from llama_index_bedrock_sessions.copying import CopyProblem, CopyReport, copy_conversations
from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    AccountError,
    AlreadyResumed,
    BedrockSessionsError,
    ConfigurationError,
    ConversationEnded,
    ConversationExists,
    CredentialsError,
    DirectoryTooLarge,
    ForeignSessionError,
    InvalidContextError,
    InvalidKeyError,
    InvalidMessageError,
    InvalidPointError,
    InvalidStateError,
    NewerFormatError,
    RequestRefusedError,
    ServiceError,
    SessionClosed,
    StepTooLargeError,
    StoredDataError,
    ThrottledError,
    UnavailableError,
    UsageError,
)
from llama_index_bedrock_sessions.events import AuditEvent, ServiceCallEvent
from llama_index_bedrock_sessions.memory.memory import BedrockSessionsMemory
from llama_index_bedrock_sessions.memory.store import BedrockSessionsMemoryStore
from llama_index_bedrock_sessions.tool_calls import heal_tool_calls

__all__ = [
    "AccessDeniedError",
    "AccountError",
    "AlreadyResumed",
    "AuditEvent",
    "BedrockSessionsChatStore",
    "BedrockSessionsError",
    "BedrockSessionsMemory",
    "BedrockSessionsMemoryStore",
    "ConfigurationError",
    "Conversation",
    "ConversationEnded",
    "ConversationExists",
    "CopyProblem",
    "CopyReport",
    "CredentialsError",
    "DirectoryTooLarge",
    "Entry",
    "ForeignSessionError",
    "InvalidContextError",
    "InvalidKeyError",
    "InvalidMessageError",
    "InvalidPointError",
    "InvalidStateError",
    "NewerFormatError",
    "Record",
    "RenewResult",
    "RequestRefusedError",
    "S3MediaStore",
    "SavedContext",
    "ServiceCallEvent",
    "ServiceError",
    "SessionClosed",
    "StepTooLargeError",
    "StoredDataError",
    "ThrottledError",
    "UnavailableError",
    "UsageError",
    "copy_conversations",
    "heal_tool_calls",
]

# Saved contexts store qualified names. They have to outlive a move of modules.
for _name in __all__:
    globals()[_name].__module__ = __name__
