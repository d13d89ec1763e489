"""Trials in the tables: what became of the model that a job is on now."""

from __future__ import annotations

import pytest

from jetfleet.streams import FLEET, REGISTRY
from jetfleet_projections import statements
from jetfleet_projections.warehouse import Warehouse
from projections_made import Log


@pytest.fixture
def log() -> Log:
    made = Log()
    made.model()
    made.job("created")
    return made


def shown(warehouse: Warehouse, log: Log) -> str:
    """What ``ps`` says of the job's trial."""
    for stream in (REGISTRY, FLEET):
        warehouse.apply(log.batches[stream])
    result = statements.Runner(warehouse.connection).run("queries.sql", "ps", tenant="default")
    [row] = result
    return str(row[-1])


def test_a_model_that_was_not_tried_is_unverified(warehouse: Warehouse, log: Log) -> None:
    assert shown(warehouse, log) == "unverified"


def test_the_trial_of_the_present_model_counts(warehouse: Warehouse, log: Log) -> None:
    log.concluded("echo:1")
    log.model(version="2")
    log.job("updated", version="2")
    log.concluded("echo:2", "failed", reason="KeyError", keeps="echo:1")
    assert shown(warehouse, log) == "failed"
    rows = warehouse.connection.execute(
        "SELECT model, state, reason, keeps, worker FROM trials ORDER BY seq"
    ).fetchall()
    assert rows == [
        ("echo:1", "verified", "", "", "w1"), ("echo:2", "failed", "KeyError", "echo:1", "w1"),
    ]  # fmt: skip


def test_another_model_than_the_tried_one_is_unverified(warehouse: Warehouse, log: Log) -> None:
    log.concluded("echo:1")
    log.model(version="2")
    log.job("updated", version="2")
    assert shown(warehouse, log) == "unverified"


def test_the_trial_of_a_former_job_of_its_name_is_none(warehouse: Warehouse, log: Log) -> None:
    log.concluded("echo:1", "failed", registry_seq=2)
    log.job("deleted")
    log.job("created")
    assert shown(warehouse, log) == "unverified"
