"""What every test shares."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("llama_index_bedrock_sessions.conformance")
