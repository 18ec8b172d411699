"""Faults, clock, behaviour and counts over HTTP, for tests in other processes and other languages.

Law: it is there only where `serve(control=True)` asked for it, beneath a path that no operation of the service has.
Everything is JSON; what cannot be done is answered with 400 and a message that says what is accepted, and changes
nothing. A request with a body has to name its type, application/json: a web page cannot send that here unasked.

    GET    /__control__             what there is
    GET    /__control__/faults      {"latency": 0.0, "fired": [{"operation": ..., "fault": ..., "seconds": ...}]}
    POST   /__control__/faults      {"operation": "PutInvocationStep", "nth": 1, "fault": "throttle"}, see `Faults.add`
    DELETE /__control__/faults      forget the faults, what has fired, and the latency
    POST   /__control__/latency     {"seconds": 0.02}: added to every call
    GET    /__control__/clock       {"now": "2026-01-02T03:04:05.000000Z"}
    POST   /__control__/clock       {"advance": 3600}, {"stop": true}, {"stop": "2026-01-02T03:04:05Z"}, {"start": true}
    GET    /__control__/behaviour   every setting
    POST   /__control__/behaviour   {"known_step_id": "overwrite"}: what is not named stays
    GET    /__control__/calls       {"PutInvocationStep": 3}: calls served, by operation
    DELETE /__control__/calls       forget them
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llama_index_bedrock_sessions.emulator.behaviour import Behaviour
from llama_index_bedrock_sessions.emulator.wire import Exchange, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_index_bedrock_sessions.emulator.calls import Calls
    from llama_index_bedrock_sessions.emulator.clock import Clock
    from llama_index_bedrock_sessions.emulator.faults import Faults
    from llama_index_bedrock_sessions.emulator.store import Store

PREFIX = "/__control__"
_FAULT = {"operation": "*", "nth": 1, "fault": None, "times": 1, "seconds": 0.05}


class Control:
    """Answers what is beneath `PREFIX`, and hands everything else to the emulator."""

    def __init__(
        self, exchange: Callable[[Request], Exchange], faults: Faults, clock: Clock, calls: Calls, store: Store
    ) -> None:
        self._exchange, self._faults, self._clock, self._calls, self._store = exchange, faults, clock, calls, store
        self._routes: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {
            ("GET", ""): self._list,
            ("GET", "/faults"): self._show_faults,
            ("POST", "/faults"): self._add_fault,
            ("DELETE", "/faults"): self._forget_faults,
            ("POST", "/latency"): self._set_latency,
            ("GET", "/clock"): self._show_clock,
            ("POST", "/clock"): self._move_clock,
            ("GET", "/behaviour"): self._show_behaviour,
            ("POST", "/behaviour"): self._set_behaviour,
            ("GET", "/calls"): self._count_calls,
            ("DELETE", "/calls"): self._forget_calls,
        }

    def exchange(self, request: Request) -> Exchange:
        """Serve a request. Raises what `Emulator.exchange` raises."""
        if request.path != PREFIX and not request.path.startswith(f"{PREFIX}/"):
            return self._exchange(request)
        place = request.path.removeprefix(PREFIX).rstrip("/")
        act = self._routes.get((request.method, place))
        if act is None:
            known = {path for _, path in self._routes}
            status, what = (405, "method") if place in known else (404, "path")
            return _answer(status, {"message": f"No such {what}. There are: {', '.join(self._names())}."})
        try:
            return _answer(200, act(_body(request)))
        except ValueError as error:
            return _answer(400, {"message": str(error)})

    def _names(self) -> list[str]:
        return [f"{method} {PREFIX}{path}" for method, path in self._routes]

    def _list(self, _body: dict[str, Any]) -> Any:
        return self._names()

    def _show_faults(self, _body: dict[str, Any]) -> Any:
        faults = self._faults
        return {"latency": faults.latency, "fired": [asdict(fired) for fired in list(faults.fired)]}

    def _add_fault(self, body: dict[str, Any]) -> Any:
        _only(body, set(_FAULT))
        fault = {**_FAULT, **body}
        self._faults.add(fault["operation"], fault["nth"], fault["fault"], fault["times"], seconds=fault["seconds"])
        return fault

    def _forget_faults(self, _body: dict[str, Any]) -> Any:
        self._faults.clear()
        return {}

    def _set_latency(self, body: dict[str, Any]) -> Any:
        _only(body, {"seconds"})
        self._faults.latency = _seconds(body.get("seconds"), "seconds")
        return {"latency": self._faults.latency}

    def _show_clock(self, _body: dict[str, Any]) -> Any:
        return {"now": self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")}

    def _move_clock(self, body: dict[str, Any]) -> Any:
        _only(body, {"advance", "stop", "start"})
        if len(body) != 1:
            raise ValueError('one of "advance", "stop" and "start" is needed')
        clock = self._clock
        if "advance" in body:
            clock.advance(_seconds(body["advance"], "advance"))
        elif body.get("start") is True:
            clock.start()
        elif body.get("stop") is True:
            clock.stop()
        elif isinstance(body.get("stop"), str):
            clock.stop(_moment(body["stop"]))
        else:
            raise ValueError('"start" takes true, "stop" takes true or a time such as "2026-01-02T03:04:05Z"')
        return self._show_clock({})

    def _show_behaviour(self, _body: dict[str, Any]) -> Any:
        return self._store.behaviour.to_dict()

    def _set_behaviour(self, body: dict[str, Any]) -> Any:
        self._store.behaviour = Behaviour.from_dict({**self._store.behaviour.to_dict(), **body})
        return self._show_behaviour({})

    def _count_calls(self, _body: dict[str, Any]) -> Any:
        return dict(sorted(Counter(call.operation for call in self._calls).items()))

    def _forget_calls(self, _body: dict[str, Any]) -> Any:
        self._calls.clear()
        return {}


def _body(request: Request) -> dict[str, Any]:
    if request.method != "POST":
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ValueError("the Content-Type has to be application/json")
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004 - one kind of error for what was sent
    return body


def _only(body: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(body) - known)
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _seconds(value: object, name: str) -> float:
    """Return a number of seconds; a hundred years at most, for what is added to dates has to stay one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3.2e9:
        raise ValueError(f"{name!r} takes a number of seconds from 0, not {value!r}")
    return float(value)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; one is 2026-01-02T03:04:05Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: end it with Z")
    return moment


def _answer(status: int, content: Any) -> Exchange:
    body = json.dumps(content).encode() + b"\n"
    return Exchange(Response(status, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body))
