"""Every possible AWS: the contract and random histories under every pair of settings of what AWS leaves open.

A failure that takes two settings together shows as well as one that takes one. A history runs under each combination;
of the contract each claim is tried under some of the combinations, in turn. `MATRIX=all` in the environment runs more:
the whole contract, and histories of several seeds and of every kind, under each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest

from llama_index_bedrock_sessions.conformance import ChatStoreContract
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.histories import MINUTE, random_history
from tests.support.service import Service

pytestmark = pytest.mark.thorough

SETTINGS: dict[str, tuple[Any, ...]] = Behaviour.choices() | {
    "default_page_size": (100, 2),
    "largest_page": (1000, 3),
    "steps_listed_after_seconds": (0.0, 0.5),
    "sessions_listed_after_seconds": (0.0, 0.5),
    "invocations_per_session": (None, 1),
}
"""The settings that decide what AWS has not said, each with the values to try; the limits AWS documents stay."""
SHARE = 9
"""Of the combinations a claim of the contract is tried under every ninth, beginning at another one for each claim."""
MORE = os.environ.get("MATRIX") == "all"

Row = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs(row: Row) -> set[Pair]:
    return set(combinations(sorted(row.items(), key=lambda item: item[0]), 2))


def covering(settings: dict[str, tuple[Any, ...]]) -> list[Row]:
    """Return rows that hold every pair of values of two settings: few of them, each begun with a pair still missing."""
    names = sorted(settings)
    missing = dict.fromkeys(
        ((a, x), (b, y)) for a, b in combinations(names, 2) for x, y in product(settings[a], settings[b])
    )
    rows = []
    while missing:
        row: Row = dict(next(iter(missing)))
        for name in names:
            if name not in row:
                news = {v: sum(p in missing for p in pairs({**row, name: v}) if (name, v) in p) for v in settings[name]}
                row[name] = max(news, key=lambda value: news[value])
        for pair in pairs(row):
            missing.pop(pair, None)
        rows.append(row)
    return rows


ROWS = covering(SETTINGS)


CLAIMS = [name for name in dir(ChatStoreContract) if name.startswith("test_")]


def rows_for(claim: str | None) -> range:
    """Return the numbers of the combinations under which a claim is tried; None: a history."""
    every = range(len(ROWS))
    return every if claim is None or MORE else every[CLAIMS.index(claim) % SHARE :: SHARE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "behaviour" in metafunc.fixturenames:
        rows = rows_for(metafunc.function.__name__ if metafunc.cls else None)
        metafunc.parametrize("behaviour", [Behaviour(**ROWS[row]) for row in rows], ids=map(str, rows))


def test_the_rows_cover_every_pair(record_property: Callable[[str, object], None]) -> None:
    """Every two values of two settings are together in a row, and every switch of the emulator is a setting."""
    every = {
        ((a, x), (b, y)) for a, b in combinations(sorted(SETTINGS), 2) for x, y in product(SETTINGS[a], SETTINGS[b])
    }
    tried = [row for claim in CLAIMS for row in rows_for(claim)]
    record_property("counted", f"{len(ROWS)} combinations hold the {len(every)} pairs of {len(SETTINGS)} settings;")
    record_property(
        "counted", f"{len(tried)} times a claim of the contract is tried under one, and {len(ROWS)} histories"
    )
    assert set(tried) == set(range(len(ROWS)))
    assert set().union(*map(pairs, ROWS)) == every
    assert len(ROWS) < len(every) / 10
    undocumented = {name for name in vars(Behaviour()) if name not in SETTINGS}
    assert undocumented == {
        *("steps_per_session", "step_bytes", "images_per_step", "image_bytes", "image_pixels"),
        "sessions_per_account",  # an account that takes no more sessions takes no more conversations
    }


class TestContract(ChatStoreContract):
    """Whatever AWS does, it is a chat store; where lists are late, reads may be, which histories look at."""

    @pytest.fixture
    def store(self, behaviour: Behaviour) -> Iterator[Any]:
        service = Service(behaviour=replace(behaviour, steps_listed_after_seconds=0, sessions_listed_after_seconds=0))
        yield service.store()
        service.emulator.close()


@pytest.mark.parametrize("seed", range(8 if MORE else 1))
def test_no_history_breaks_a_promise(behaviour: Behaviour, seed: int) -> None:
    """Whatever AWS does, several processes at once lose nothing, double nothing, and bring nothing back."""
    kinds = "add add add add read read remove set clear" + (" erase" if MORE else "")
    times = (MINUTE, 30 * MINUTE, 61 * MINUTE)
    number = ROWS.index({name: getattr(behaviour, name) for name in SETTINGS}) + 1000 * seed
    actions = 60 if MORE else 30
    history = random_history(number, kinds=kinds, times=times, behaviour=behaviour, faults=0.1, actions=actions)
    assert not history.anomalies, "\n".join([*map(str, history.anomalies), *history.log])
    assert any(op.outcome == "ok" for op in history.ops)
    history.emulator.close()
