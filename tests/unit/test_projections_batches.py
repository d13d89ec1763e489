"""The same log, cut into any batches and read in any order of streams, gives the same rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from jetfleet.events import decode
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet.views import evolve_view
from jetfleet_projections import tables
from jetfleet_projections.warehouse import STREAMS, Warehouse
from projections_made import POISON, Log, feed, lives, one


def mixed_log(seed: int) -> Log:
    """All streams, with poison among them."""
    log, chance = Log(), random.Random(seed)
    lives(log, 120, seed)
    batch = log.batches[INVOCATIONS]
    for index in chance.sample(range(len(batch)), 10):
        batch.bodies[index] = chance.choice([*POISON, batch.bodies[index][:-1]])
    for index in chance.sample(range(len(batch)), 10):
        batch.subjects[index] = chance.choice(batch.subjects)
    for _ in range(60):
        if chance.random() < 0.2:
            log.model(f"m{chance.randrange(2)}", str(chance.randrange(3)))
        verb = chance.choice(["created", "updated", "enabled", "disabled", "deleted"])
        log.job(verb, f"job{chance.randrange(3)}", str(chance.randrange(3)),
                max_replicas=chance.randrange(1, 5))  # fmt: skip
    made = 0
    for _ in range(150):
        worker, made = f"w{chance.randrange(3)}", made + 1
        if chance.random() < 0.35:
            verb = chance.choice(["joined", "draining", "left", "lost"])
            fields = {"replicas": (f"r{chance.randrange(8)}", "r1")} if verb == "joined" else {}
            log.worker(verb, worker, f"s{chance.randrange(3)}", **fields)
        else:
            verb = chance.choice(["assigned", "released", "preparing", "ready", "failed", "stopped", "ready", "assigned"])  # fmt: skip  # noqa: E501 - a list of chances
            log.replica(verb, f"r{chance.randrange(8)}", worker, f"job{chance.randrange(3)}")
    return log


@pytest.mark.parametrize("seed", range(3))
def test_rows_do_not_depend_on_how_the_log_was_cut_into_batches(tmp_path: Path, seed: int) -> None:
    log, chance = mixed_log(seed), random.Random(seed)
    whole = Warehouse.open(tmp_path / "whole.duckdb")
    whole.stager.plain_from = 0
    feed(whole, log)
    pieces = Warehouse.open(tmp_path / "pieces.duckdb")
    streams = list(STREAMS)
    while streams:
        pieces.stager.plain_from = chance.choice([0, 10_000])
        stream = chance.choice(streams)
        rest = log.batches[stream].after(pieces.positions[stream].seq)
        pieces.apply(rest.part(0, chance.choice([1, 7, 40])))
        if not rest.seqs:
            streams.remove(stream)
    assert tables.differences(whole.connection, pieces.connection) == {}
    assert one(whole, "SELECT count(*) FROM invocations") > 50
    assert one(whole, "SELECT count(*) FROM dead WHERE stream = 'INVOCATIONS'") >= 15
    for warehouse in (whole, pieces):
        warehouse.close()


@pytest.mark.parametrize("seed", range(3))
def test_invocations_are_what_core_folds(warehouse: Warehouse, seed: int) -> None:
    log = Log()
    lives(log, 150, seed)
    feed(warehouse, log)
    views: dict[str, Any] = {}
    batch = log.batches[INVOCATIONS]
    for seq, body in zip(batch.seqs, batch.bodies, strict=True):
        event: Any = decode(body)
        key = event.data.invocation
        views[key] = evolve_view(views.get(key), event, seq)
    names = (
        "state, queued_seq, origin, stream, queued_at, started_at, finished_at, worker, attempts"
    )
    for invocation, *values in warehouse.connection.execute(
        f"SELECT invocation::VARCHAR, {names} FROM invocations"  # noqa: S608 - our names
    ).fetchall():
        view = views.pop(invocation)
        for name, value in zip(names.split(", "), values, strict=True):
            expected = getattr(view, name)
            assert value == (expected.replace(tzinfo=None) if hasattr(expected, "tzinfo") and expected else expected), name  # fmt: skip  # noqa: E501 - the names beside the values
    assert views == {}


def test_streams_are_the_ones_of_the_core() -> None:
    assert set(STREAMS) == {REGISTRY, INVOCATIONS, FLEET}
