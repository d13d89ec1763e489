"""The view `speeds`: how long models run on which GPUs, by the log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jetfleet.specs import GpuSpec
from jetfleet.streams import FLEET, INVOCATIONS
from jetfleet_projections import tables
from jetfleet_projections.warehouse import Warehouse
from projections_made import Log

H100 = GpuSpec(index=0, name="NVIDIA H100", uuid="GPU-h")
T4 = GpuSpec(index=0, name="Tesla T4")


def ran(log: Log, worker: str, *runs_s: float, outcome: str = "completed") -> None:
    for run_s in runs_s:
        invocation = log.clock.new_id()
        log.queued(invocation)
        log.done(invocation, outcome=outcome, worker=worker, run_s=run_s)


def speeds(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return warehouse.connection.execute(
        "SELECT tenant, model, gpu, runs, service_p50_s, service_mean_s FROM speeds ORDER BY ALL"
    ).fetchall()


def story() -> Log:
    log = Log()
    log.worker("joined", "w1", gpus=(H100,))
    log.worker("joined", "w2", gpus=(T4,))
    log.worker("joined", "w3")
    log.replica("assigned", "r-w1", "w1", gpus=("GPU-h",))
    log.replica("assigned", "r-w2", "w2", gpus=("0",))
    log.replica("assigned", "r-w3", "w3")
    ran(log, "w1", 0.1, 0.2, 0.6)
    ran(log, "w2", 1.0)
    ran(log, "w3", 5.0, 7.0)
    ran(log, "w3", 90.0, outcome="failed")
    log.worker("joined", "w1", "s2")  # it came back without its GPU: what ran on it still did
    return log


ROWS = [
    ("default", "echo:1", "", 2, 6.0, 6.0),
    ("default", "echo:1", "NVIDIA H100", 3, 0.2, 0.3),
    ("default", "echo:1", "Tesla T4", 1, 1.0, 1.0),
]


def test_runs_count_for_the_type_of_gpu_that_the_replica_was_given(warehouse: Warehouse) -> None:
    log = story()
    for stream in (FLEET, INVOCATIONS):
        warehouse.apply(log.batches[stream])
    assert speeds(warehouse) == ROWS


def test_it_is_the_same_however_the_log_is_read(warehouse: Warehouse, tmp_path: Path) -> None:
    log = story()
    for stream in (INVOCATIONS, FLEET):
        batch = log.batches[stream]
        for start in range(len(batch)):
            warehouse.apply(batch.part(start, start + 1))
    assert speeds(warehouse) == ROWS
    again = Warehouse.open(tmp_path / "again.duckdb")
    for stream in (FLEET, INVOCATIONS):
        again.apply(log.batches[stream])
    assert tables.rows(again.connection, "speeds") == tables.rows(warehouse.connection, "speeds")
    again.close()


def test_a_worker_that_names_the_replica_of_another_counts_for_nothing(
    warehouse: Warehouse,
) -> None:
    log = story()
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.done(invocation, worker="w2", replica="r-w1", run_s=0.000001)
    for stream in (FLEET, INVOCATIONS):
        warehouse.apply(log.batches[stream])
    assert speeds(warehouse) == ROWS
