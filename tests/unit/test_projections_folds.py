"""The SQL folds against core's: the same events, the same state; SQL's reading against Python's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import capacity_made
from jetfleet.catalog import RegistryState, evolve_registry
from jetfleet.events import (
    EVENT_TYPES,
    InvocationCompleted,
    InvocationQueued,
    InvocationStarted,
    WorkerJoined,
    compose,
    decode,
)
from jetfleet.fleet import FleetState, evolve_fleet
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections.batches import Batch
from jetfleet_projections.warehouse import Warehouse
from projections_made import Both, Log, lives, read_differently, two_readers


def dicts(warehouse: Warehouse, sql: str) -> list[dict[str, Any]]:
    result = warehouse.connection.execute(sql)
    names = [column[0] for column in result.description]
    return [dict(zip(names, values, strict=True)) for values in result.fetchall()]


def naive(time: Any) -> Any:
    return None if time is None else time.replace(tzinfo=None)


def fleet_log(seed: int, length: int = 200) -> Log:
    log, chance = Log(), random.Random(seed)
    for _ in range(length):
        worker = f"w{chance.randrange(3)}"
        replica = f"r{chance.randrange(6)}"
        if chance.random() < 0.3:
            verb = chance.choice(["joined", "joined", "draining", "left", "lost"])
            named = tuple(f"r{n}" for n in range(6) if chance.random() < 0.5)
            fields: dict[str, Any] = {}
            if verb == "joined":
                labels = {"zone": chance.choice("ab")}
                fields = {"replicas": named, "labels": labels, "trusted": chance.random() < 0.5}
            if chance.random() < 0.2:
                owner = chance.choice(["ada", ""])
                log.admitted(worker, trusted=chance.random() < 0.5, owner=owner, labels={"a": "1"})
            log.worker(verb, worker, f"s{chance.randrange(2)}", **fields)
            if chance.random() < 0.2:
                log.given_back(worker, f"s{chance.randrange(2)}")
        else:
            verb = chance.choice(
                ["assigned"] * 3 + ["ready"] * 3 + ["preparing", "released", "failed", "stopped"]
            )
            log.replica(verb, replica, worker)
    return log


def parts(batch: Batch, chance: random.Random) -> Iterator[Batch]:
    """The batch in pieces of various sizes."""
    start = 0
    while start < len(batch):
        stop = start + chance.choice([1, 5, 40])
        yield batch.part(start, stop)
        start = stop


@pytest.mark.parametrize("seed", range(6))
def test_fleet_is_what_core_folds(warehouse: Warehouse, seed: int) -> None:
    log, chance = fleet_log(seed), random.Random(seed)
    state = FleetState()
    for part in parts(log.batches[FLEET], chance):
        warehouse.apply(part)
        for seq, body in zip(part.seqs, part.bodies, strict=True):
            state = evolve_fleet(state, decode(body), seq)
        workers = {row["worker"]: row for row in dicts(warehouse, "SELECT * FROM workers")}
        assert {
            n: (w.status, w.session, w.joined_seq, w.trusted, w.owner, w.labels)
            for n, w in state.workers.items()
        } == {
            n: (w["state"], w["session"], w["joined_seq"], w["trusted"], w["owner"],
                json.loads(w["labels"]))
            for n, w in workers.items()
        }  # fmt: skip
        live = dicts(warehouse, "SELECT * FROM replicas WHERE ended_at IS NULL")
        assert {
            r.id: (r.status, r.worker, r.assigned_seq, naive(r.assigned_at), naive(r.ready_at))
            for r in state.replicas.values()
        } == {
            r["replica"]: (
                r["state"],
                r["worker"],
                r["assigned_seq"],
                r["assigned_at"],
                r["ready_at"],
            )
            for r in live
        }


@pytest.mark.parametrize("seed", range(4))
def test_registry_is_what_core_folds(warehouse: Warehouse, seed: int) -> None:
    log, chance = Log(), random.Random(seed)
    for _ in range(120):
        if chance.random() < 0.3:
            log.model(
                f"m{chance.randrange(2)}",
                str(chance.randrange(3)),
                description=str(chance.random()),
            )
        verb = chance.choice(["created", "updated", "enabled", "disabled", "deleted"])
        log.job(verb, f"j{chance.randrange(2)}", str(chance.randrange(3)))
    state = RegistryState()
    for part in parts(log.batches[REGISTRY], chance):
        warehouse.apply(part)
        for seq, body in zip(part.seqs, part.bodies, strict=True):
            state = evolve_registry(state, decode(body), seq)
        jobs = dicts(warehouse, "SELECT * FROM jobs")
        assert {
            key: (j.enabled, j.created_seq, j.updated_seq, naive(j.created_at),
                  j.spec.model.version)
            for key, j in state.jobs.items()
        } == {
            (j["tenant"], j["job"]):
            (j["enabled"], j["created_seq"], j["updated_seq"], j["created_at"], j["model_version"])
            for j in jobs
        }  # fmt: skip
        models = dicts(warehouse, "SELECT * FROM models")
        assert {key: m.description for key, m in state.models.items()} == {
            (m["tenant"], m["model"], m["version"]): m["description"] for m in models
        }


def test_every_event_that_is_stored_has_a_place_in_the_projections(warehouse: Warehouse) -> None:
    log = Log()
    log.model()
    for verb in ("created", "updated", "enabled", "disabled", "deleted"):
        log.job(verb)
    for verb in ("joined", "draining", "left", "lost"):
        log.worker(verb)
    log.admitted()
    log.revoked()
    log.scaled(2)
    log.balanced(w1=None, w2=3)
    log.given_back("w1")
    for event in capacity_made.one_of_each():
        log.say(FLEET, capacity_made.subject_of(event), event)
    log.concluded("echo:1")
    for verb in ("assigned", "preparing", "tried", "ready", "released", "failed", "stopped"):
        log.replica(verb, "r1")
    for outcome in ("completed", "failed", "cancelled", "expired"):
        invocation = log.clock.new_id()
        log.queued(invocation)
        log.cancel(invocation)
        log.started(invocation)
        log.done(invocation, outcome=outcome)
    for batch in log.batches.values():
        warehouse.apply(batch)
    assert dicts(warehouse, "SELECT * FROM dead") == []
    found = {row["type"] for row in dicts(warehouse, "SELECT DISTINCT type FROM events")}
    assert found == set(EVENT_TYPES) - {"jetfleet.worker.heartbeat"}  # telemetry is not kept


def test_replicas_keep_their_history(warehouse: Warehouse) -> None:
    log = Log()
    log.worker("joined")
    log.scaled(2)
    for verb in ("assigned", "preparing", "ready"):
        log.replica(verb, "r1")
        log.replica(verb, "r2")
    log.balanced(w1=None, w2=3)
    log.concluded("echo:1", replica="r1")
    log.replica("released", "r1")
    log.replica("stopped", "r1")
    log.worker("lost")
    warehouse.apply(log.batches[FLEET])
    rows = {row["replica"]: row for row in dicts(warehouse, "SELECT * FROM replicas")}
    assert (rows["r1"]["state"], rows["r1"]["restarts"]) == ("stopped", 1)
    assert rows["r1"]["released_at"] < rows["r1"]["ended_at"]
    assert (rows["r2"]["state"], rows["r2"]["reason"]) == ("gone", "the worker was lost")
    decisions = dicts(warehouse, "SELECT decision, replica, desired FROM decisions ORDER BY seq")
    assert [tuple(d.values()) for d in decisions] == [
        ("scaled", None, 2), ("assigned", "r1", None), ("assigned", "r2", None),
        ("balanced", None, None), ("tried", "r1", None), ("released", "r1", None),
    ]  # fmt: skip


def _left_out(body: bytes, kind: type[BaseModel], part: str = "") -> bytes:
    """The event without the fields that have a default, as others may write it."""
    event = json.loads(body)
    data = event["data"][part] if part else event["data"]
    for name in [n for n in data if not kind.model_fields[n].is_required()]:
        if name != "function":  # what runs, of which a model needs one
            del data[name]
    return json.dumps(event, separators=(",", ":")).encode()


def test_what_an_event_leaves_to_defaults_is_folded_as_core_folds_it(warehouse: Warehouse) -> None:
    log = Log()
    log.worker("joined")
    log.replica("assigned", "r1")
    log.worker("joined")  # which names no replica: it has none
    log.model()
    log.job("created")
    fleet, registry = log.batches[FLEET].bodies, log.batches[REGISTRY].bodies
    fleet[0], fleet[2] = (_left_out(fleet[n], WorkerJoined.Data) for n in (0, 2))
    registry[0] = _left_out(registry[0], ModelSpec, "model")
    registry[1] = _left_out(registry[1], JobSpec, "job")
    for stream in (FLEET, REGISTRY):
        warehouse.apply(log.batches[stream])
    assert dicts(warehouse, "SELECT reason FROM dead") == []
    assert dicts(warehouse, "SELECT owner, trusted, joined_seq FROM workers") == [
        {"owner": "", "trusted": False, "joined_seq": 3}
    ]
    assert dicts(warehouse, "SELECT state FROM replicas") == [{"state": "gone"}]
    assert dicts(warehouse, "SELECT replicas FROM jobs") == [{"replicas": 1}]
    assert dicts(warehouse, "SELECT version, runtime FROM models") == [
        {"version": "1", "runtime": "process"}
    ]


def test_fleet_event_of_another_worker_is_set_aside(warehouse: Warehouse) -> None:
    log = Log()
    log.worker("joined", "w1")
    log.replica("assigned", "r1", "w1")
    log.replica("ready", "r1", "w1")
    batch = log.batches[FLEET]
    batch.subjects[2] = "jf.fleet.w2.ready"
    warehouse.apply(batch)
    assert [d["seq"] for d in dicts(warehouse, "SELECT seq FROM dead")] == [3]
    assert dicts(warehouse, "SELECT state FROM replicas") == [{"state": "assigned"}]


# -- SQL's reading of invocation events against Python's


def undecided(warehouse: Warehouse, batch: Batch) -> list[int]:
    """Sequences that SQL leaves to Python."""
    stager = warehouse.stager
    seen: list[int] = []
    stage = type(stager)._stage

    def spy(self: Any, seqs: Any, staged: Any) -> None:
        seen.extend(seqs)
        stage(self, seqs, staged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stager), "_stage", spy)
        stager.plain_from = 0
        warehouse.apply(batch)
    return seen


def test_every_event_as_the_core_writes_it_is_read_by_sql(warehouse: Warehouse) -> None:
    log = Log()
    for outcome in ("completed", "failed", "cancelled", "expired"):
        invocation = log.clock.new_id()
        log.queued(
            invocation, stream=True, idempotency_key='a "key"\n', input=[1, 2.5, None, "é\u2028"]
        )
        log.cancel(invocation, reason='say "no"')
        log.started(invocation)
        log.done(invocation, outcome=outcome)
        log.done(invocation, outcome=outcome, worker=None, attempt=0)
    assert undecided(warehouse, log.batches[INVOCATIONS]) == []


def test_every_event_as_the_core_composes_it_is_read_by_sql(warehouse: Warehouse) -> None:
    log = Log()
    invocation = log.clock.new_id()
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    facts = {"invocation": invocation, "job": "echo", "worker": "w1", "replica": "r1", "attempt": 1}
    bodies = [
        (
            "jf.inv.0.default.echo.queued.normal",
            InvocationQueued,
            {
                "invocation": invocation,
                "job": "echo",
                "input": None,
                "origin": "g1",
                "stream": False,
                "timeout_s": 1.5,
                "expires_at": log.clock.now(),
                "priority_class": "normal",
                "idempotency_key": "k",
            },
        ),
        ("jf.inv.0.default.echo.started.w1", InvocationStarted, {**facts, "run_s": 0.0206}),
        (
            "jf.inv.0.default.echo.done.g1.w1",
            InvocationCompleted,
            {**facts, "run_s": 0.00002, "chunks": 0, "output": None},
        ),
    ]
    for subject, kind, data in bodies:
        envelope = log.stamp("default", correlation=invocation, trace=trace)
        log.put(INVOCATIONS, subject, compose(kind, envelope, data))
    assert undecided(warehouse, log.batches[INVOCATIONS]) == []
    assert dicts(warehouse, "SELECT state, trace FROM invocations, events LIMIT 1") == [
        {"state": "completed", "trace": trace}
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
odd_values = json_values | st.sampled_from(
    [
        "queued",
        "-1",
        "1e400",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:00.5+01:00",
        -1,
        0,
        1.0,
        1e300,
    ]
)


@st.composite
def odd_bodies(draw: st.DrawFn) -> list[tuple[str, bytes]]:
    """Invocation events with a few fields changed, removed, added or written in another style."""
    log = Log()
    invocation = log.clock.new_id()
    log.queued(invocation, input=draw(json_values))
    log.started(invocation)
    outcome = draw(st.sampled_from(["completed", "failed", "cancelled", "expired"]))
    log.done(
        invocation,
        outcome=outcome,
        **({"output": draw(json_values)} if outcome == "completed" else {}),
    )
    log.cancel(invocation)
    batch, bodies = log.batches[INVOCATIONS], []
    for subject, body in zip(batch.subjects, batch.bodies, strict=True):
        document = json.loads(body)
        if draw(st.booleans()):
            target = draw(st.sampled_from([document, document["data"]]))
            name = draw(st.sampled_from([*target, "extra"]))
            if draw(st.booleans()):
                target[name] = draw(odd_values)
            else:
                target.pop(name, None)
        if draw(st.booleans()):
            first = {
                name: document.pop(name)
                for name in ("specversion", "type", "dataversion")
                if name in document
            }
            document = {**first, **document}
        spaces = draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": ")]))
        text = json.dumps(document, separators=spaces, ensure_ascii=draw(st.booleans()))
        bodies.append((subject, text.encode(errors="surrogatepass")))
    return bodies


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with two_readers(tmp_path_factory.mktemp("both")) as opened:
        yield opened


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies=odd_bodies())
def test_sql_and_python_read_the_same(both: Both, bodies: list[tuple[str, bytes]]) -> None:
    assert read_differently(both, bodies) == {}


def test_lives_are_read_by_sql_but_for_nothing(warehouse: Warehouse) -> None:
    log = Log()
    lives(log, 60, seed=3)
    assert undecided(warehouse, log.batches[INVOCATIONS]) == []
