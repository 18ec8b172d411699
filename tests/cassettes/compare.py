"""Put the requests of a tape to the emulator, and name every difference between its answers and the recorded ones.

Ids that the service chose are translated as they appear; times and tokens are compared as such, whatever they say;
messages of errors are not compared. For documents, which show the form of an answer rather than one, only the status,
the members and their types are.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from llama_index_bedrock_sessions.emulator.wire import Request
from tests.cassettes.tape import unpacked

if TYPE_CHECKING:
    from llama_index_bedrock_sessions.emulator import Emulator
    from tests.cassettes.tape import Tape

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_REGION = re.compile(r"(arn(?::|%3A)aws[a-z-]*(?::|%3A)bedrock(?::|%3A))[a-z0-9-]+")


class _Translation:
    """From the ids and tokens of the tape to those of the emulator."""

    def __init__(self, region: str) -> None:
        self._words: dict[str, str] = {}
        self._region = region

    def learn(self, recorded: Any, ours: Any) -> None:
        """Pair what stands at the same places of two answers."""
        if isinstance(recorded, dict) and isinstance(ours, dict):
            for name in recorded.keys() & ours.keys():
                if name == "nextToken":
                    self._words[recorded[name]] = ours[name]
                else:
                    self.learn(recorded[name], ours[name])
        elif isinstance(recorded, list) and isinstance(ours, list):
            for one, other in zip(recorded, ours, strict=False):
                self.learn(one, other)
        elif (
            isinstance(recorded, str) and isinstance(ours, str) and _UUID.fullmatch(recorded) and _UUID.fullmatch(ours)
        ):
            self._words.setdefault(recorded, ours)

    def __call__(self, text: str) -> str:
        for recorded, ours in self._words.items():
            text = text.replace(recorded, ours).replace(quote(recorded), quote(ours))
        return _REGION.sub(lambda found: found[1] + self._region, text)


def differences(tape: Tape, emulator: Emulator, *, form_only: bool = False) -> list[str]:
    """Return what differs, a line each; [] if the emulator answers as the tape does."""
    translate = _Translation(emulator.region_name)
    found: list[str] = []
    emulator.clock.stop(tape.start)
    for number, one in enumerate(tape.interactions, 1):
        asked, recorded = one["request"], one.get("response")
        if recorded and "date" in recorded["headers"]:
            emulator.clock.stop(parsedate_to_datetime(recorded["headers"]["date"]))
        body = translate(json.dumps(asked["json"])).encode() if "json" in asked else unpacked(asked)
        request = Request(asked["method"], translate(asked["path"]), translate(asked.get("query", "")), {}, body)
        response = emulator.exchange(request).response
        assert response is not None
        if recorded is None:  # nobody was told what the service answered
            continue
        name = f"{number} {asked['method']} {asked['path']}"
        ours = json.loads(response.body) if response.body else None
        theirs = recorded.get("json")
        if response.status != recorded["status"]:
            found.append(f"{name}: status {recorded['status']}, ours {response.status}")
        elif response.status >= 400:
            kinds = [
                _kind(recorded["headers"].get("x-amzn-errortype")),
                _kind(response.headers.get("x-amzn-ErrorType")),
            ]
            if kinds[0] != kinds[1]:
                found.append(f"{name}: error {kinds[0]}, ours {kinds[1]}")
        else:
            translate.learn(theirs, ours)
            if form_only:
                theirs, ours = _form(theirs), _form(ours)
            else:
                theirs, ours = _plain(json.loads(translate(json.dumps(theirs)))), _plain(ours)
            if theirs != ours:
                found.append(f"{name}: answer {json.dumps(theirs)}, ours {json.dumps(ours)}")
    return found


def _kind(header: str | None) -> str | None:
    return header.partition(":")[0] if header else None


def _plain(value: Any) -> Any:
    """Return an answer with its times and tokens as such."""
    if isinstance(value, dict):
        return {name: "<token>" if name == "nextToken" else _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return "<time>" if isinstance(value, str) and _TIME.fullmatch(value) else value


def _form(value: Any) -> Any:
    """Return an answer with types for values, and the form of one entry for a list; nextToken may be absent."""
    if isinstance(value, dict):
        return {name: _form(one) for name, one in sorted(value.items()) if name != "nextToken"}
    if isinstance(value, list):
        return [_form(value[0])] if value else []
    if isinstance(value, str):
        return "<time>" if _TIME.fullmatch(value) else "<id>" if _UUID.fullmatch(value) else "<string>"
    return type(value).__name__
