"""Streams and consumers are written out: what matters is said, never left to a default."""

from __future__ import annotations

import json

import pytest

from given import job
from jetfleet import streams, subjects
from jetfleet.streams import DAY, GIB, SECOND
from nats_rules import matches, overlap

EVERY = {config["name"]: config for config in streams.all_streams(4)}
KEPT = {"REGISTRY": None, "INVOCATIONS": 30 * DAY, "FLEET": None, "PAYLOADS": 2 * DAY}


def test_an_installation_has_the_log_and_its_queues():
    names = ["REGISTRY", "INVOCATIONS", "FLEET", "TELEMETRY", "PAYLOADS", "Q0", "Q1", "Q2", "Q3"]
    assert list(EVERY) == names
    assert len(streams.all_streams(64)) == 5 + 64


@pytest.mark.parametrize("name", list(EVERY))
def test_every_stream_says_what_the_server_would_otherwise_choose(name):
    config = EVERY[name]
    stated = {"name", "subjects", "storage", "retention", "discard", "max_consumers",
              "allow_direct", "num_replicas"}  # fmt: skip
    assert stated <= set(config)
    json.dumps(config)


@pytest.mark.parametrize("name", ["REGISTRY", "INVOCATIONS", "FLEET", "PAYLOADS"])
def test_the_log_is_on_disk_and_refuses_instead_of_forgetting(name):
    config = EVERY[name]
    assert config["storage"] == "file"
    assert config["retention"] == "limits"
    assert config["discard"] == "new"
    assert config.get("max_age") == KEPT[name]


def test_nothing_can_be_taken_out_of_the_registry():
    assert EVERY["REGISTRY"]["deny_delete"] is True


def test_the_work_log_is_bound_by_size_and_remembers_message_ids():
    assert EVERY["INVOCATIONS"]["max_bytes"] == 32 * GIB
    assert EVERY["INVOCATIONS"]["duplicate_window"] == 600 * SECOND


def test_heartbeats_are_in_memory_and_give_way():
    config = EVERY["TELEMETRY"]
    assert (config["storage"], config["discard"]) == ("memory", "old")
    assert config["max_age"] == 600 * SECOND
    assert config["max_msgs_per_subject"] == 300


def test_in_a_cluster_the_log_is_replicated_and_queues_and_telemetry_are_not():
    replicas = {c["name"]: c["num_replicas"] for c in streams.all_streams(2, replicas=3)}
    assert replicas == {"REGISTRY": 3, "INVOCATIONS": 3, "FLEET": 3, "PAYLOADS": 3,
                        "TELEMETRY": 1, "Q0": 1, "Q1": 1}  # fmt: skip


@pytest.mark.parametrize("shard", range(4))
def test_a_queue_holds_its_shards_work_and_forgets_what_is_acknowledged(shard):
    config = EVERY[f"Q{shard}"]
    assert config["retention"] == "workqueue"
    (source,) = config["sources"]
    (transform,) = source["subject_transforms"]
    assert source["name"] == "INVOCATIONS"
    assert matches(transform["src"], subjects.queued(shard, "default", "echo", "normal"))
    assert not matches(transform["src"], subjects.queued(shard + 1, "default", "echo", "normal"))
    assert not matches(transform["src"], subjects.cancel(shard, "default", "echo"))
    written = transform["dest"]
    for n, token in enumerate(("default", "echo", "normal"), start=1):
        written = written.replace("{{wildcard(" + str(n) + ")}}", token)
    assert written == subjects.queue(shard, "default", "echo", "normal")


def test_no_two_streams_take_the_same_message():
    taken = [(name, subject) for name, c in EVERY.items() for subject in c["subjects"]]
    for name, subject in taken:
        for other, against in taken:
            assert name == other or not overlap(subject, against), (name, other)


def test_output_chunks_commands_and_questions_are_stored_nowhere():
    for subject in (
        subjects.output("i", "w1"),
        subjects.command("w1"),
        subjects.ask_query(),
        subjects.ask_credentials("w1"),
    ):
        assert not any(matches(s, subject) for c in EVERY.values() for s in c["subjects"])


def test_a_jobs_consumer_is_written_out():
    spec = job("echo", ack_wait_s=7, priority_class="high")
    assert streams.job_consumer("acme", "echo", spec, 2) == {
        "durable_name": "acme__echo__high",
        "name": "acme__echo__high",
        "filter_subject": "jf.q.2.acme.echo.high",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 7 * SECOND,
        "max_deliver": -1,
        "max_ack_pending": 20_000,
        "max_waiting": 20_000,
        "mem_storage": True,
        "num_replicas": 1,
        "priority_groups": ["w"],
        "priority_policy": "overflow",
    }


def test_a_job_has_a_consumer_for_each_of_its_classes_and_no_two_share_a_message():
    spec = job("echo", priority_classes=("high", "normal", "low"))
    found = streams.job_consumers("acme", "echo", spec, 2)
    assert [each["name"] for each in found] == [
        "acme__echo__high", "acme__echo__normal", "acme__echo__low",
    ]  # fmt: skip
    assert [each["filter_subject"] for each in found] == [
        "jf.q.2.acme.echo.high", "jf.q.2.acme.echo.normal", "jf.q.2.acme.echo.low",
    ]  # fmt: skip
    assert streams.job_consumers("acme", "echo", job("echo"), 2) == [
        streams.job_consumer("acme", "echo", job("echo"), 2)
    ]


def test_a_workers_consumer_is_written_out():
    assert streams.worker_consumer("w1", 17) == {
        "durable_name": "W_w1",
        "name": "W_w1",
        "filter_subject": "jf.ctl.*.*.*.w1",
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": 17,
        "ack_policy": "explicit",
        "ack_wait": 5 * SECOND,
        "max_deliver": -1,
        "max_ack_pending": 1_000,
        "num_replicas": 1,
        "inactive_threshold": DAY,
    }


def test_a_workers_consumer_hears_its_assignments_and_no_others():
    heard = streams.worker_consumer("w1", 1)["filter_subject"]
    assert matches(heard, subjects.control("default", "echo", "assigned", "w1"))
    assert not matches(heard, subjects.control("default", "echo", "assigned", "w2"))
