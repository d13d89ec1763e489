"""Access: each role may do what it does, and not what others do. Matching is the broker's rule."""

from __future__ import annotations

import itertools

import pytest

from given import job
from jetfleet import access, jwt, subjects
from jetfleet.streams import job_consumer, worker_consumer
from jetfleet.subjects import ANY, NOBODY
from nats_rules import allowed, matches, overlap, reachable

ROLES = {role: access.role_permissions(role) for role in access.ROLES}
QUEUED = subjects.queued(1, "default", "echo")
CANCEL = subjects.cancel(1, "default", "echo")
DONE_BY_WORKER = subjects.done(1, "default", "echo", "o1", "w1")
DONE_BY_NOBODY = subjects.done(1, "default", "echo", "o1", NOBODY)
ASSIGNED = subjects.control("default", "echo", "assigned", "w1")
REGISTERED = subjects.model_event("default", "m", "registered")
INPUT = subjects.input_blob("default", "echo", "b", 0)
READ_LOG = ["$JS.API.STREAM.INFO.INVOCATIONS", "$JS.API.DIRECT.GET.REGISTRY",
            "$JS.API.CONSUMER.CREATE.INVOCATIONS.r1.jf.inv.>",
            "$JS.API.CONSUMER.MSG.NEXT.INVOCATIONS.r1",
            "$JS.API.CONSUMER.DELETE.INVOCATIONS.r1",
            "$JS.API.STREAM.MSG.GET.INVOCATIONS"]  # fmt: skip
ADMIN = [f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "DELETE", "PURGE")
         for stream in ("INVOCATIONS", "REGISTRY", "FLEET", "Q0")] + [
    "$JS.API.STREAM.MSG.DELETE.INVOCATIONS", "$JS.API.STREAM.SNAPSHOT.REGISTRY",
    "$JS.API.STREAM.RESTORE.REGISTRY", "$JS.API.CONSUMER.CREATE.Q0.x.jf.q.>",
    "$JS.API.CONSUMER.DURABLE.CREATE.Q0.x", "$JS.API.CONSUMER.DELETE.Q0.x",
    "$JS.API.CONSUMER.MSG.NEXT.Q0.default__echo__normal"]  # fmt: skip

MAY = {
    "operator": [*READ_LOG, QUEUED, CANCEL, INPUT, REGISTERED, subjects.ask_query(),
                 subjects.command("w1"), "$JS.API.CONSUMER.INFO.Q0.default__echo__normal"],
    "gateway": [*READ_LOG, QUEUED, CANCEL, INPUT, REGISTERED, subjects.ask_query()],
    "publisher": [*READ_LOG, QUEUED, CANCEL, INPUT, subjects.ask_query()],
    "projector": READ_LOG,
    "conductor": [*READ_LOG, *ADMIN, ASSIGNED, subjects.fleet("w1", "lost"), DONE_BY_NOBODY,
                  subjects.command("w1"), subjects.queue(1, "default", "echo"), "_R_.x.y",
                  subjects.capacity_decision("requested")],
    "provider": ["$JS.API.STREAM.INFO.FLEET", "$JS.API.CONSUMER.CREATE.FLEET.r1.x",
                 "$JS.API.CONSUMER.MSG.NEXT.FLEET.r1", "$JS.API.CONSUMER.DELETE.FLEET.r1",
                 subjects.provider("p", "accepted")],
}  # fmt: skip
MAY_NOT = {
    "operator": [*ADMIN, DONE_BY_WORKER, DONE_BY_NOBODY, ASSIGNED, subjects.fleet("w1", "joined"),
                 subjects.telemetry("w1"), subjects.queue(1, "default", "echo")],
    "gateway": [*ADMIN, DONE_BY_WORKER, DONE_BY_NOBODY, ASSIGNED, subjects.fleet("w1", "joined"),
                subjects.command("w1")],
    "publisher": [*ADMIN, DONE_BY_WORKER, DONE_BY_NOBODY, ASSIGNED, REGISTERED,
                  subjects.command("w1")],
    "projector": [*ADMIN, QUEUED, CANCEL, INPUT, DONE_BY_WORKER, DONE_BY_NOBODY, ASSIGNED,
                  REGISTERED, subjects.command("w1"), subjects.fleet("w1", "left")],
    "conductor": [QUEUED, CANCEL, DONE_BY_WORKER, REGISTERED, INPUT,
                  subjects.started(1, "default", "echo", "w1"), subjects.provider("p", "accepted")],
    "provider": [*ADMIN, *READ_LOG, QUEUED, CANCEL, INPUT, REGISTERED, DONE_BY_WORKER,
                 DONE_BY_NOBODY, ASSIGNED, subjects.capacity_decision("requested"),
                 subjects.command("w1"), subjects.fleet("w1", "left"), subjects.ask_query()],
}  # fmt: skip
HEARS = {
    "operator": [
        DONE_BY_WORKER,
        subjects.output("i", "w1"),
        subjects.telemetry("w1"),
        subjects.log("default", "echo", "w1", "r1"),
    ],
    "gateway": [DONE_BY_WORKER, subjects.output("i", "w1"), subjects.telemetry("w1")],
    "publisher": [DONE_BY_WORKER, subjects.output("i", "w1")],
    "projector": [subjects.ask_query(), subjects.telemetry("w1")],
    "conductor": [subjects.telemetry("w1"), subjects.ask_credentials("w1"), CANCEL],
    "provider": [],
}


def _cases(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(role, subject) for role, listed in table.items() for subject in listed]


def test_every_role_is_tested():
    assert set(MAY) == set(MAY_NOT) == set(HEARS) == set(access.ROLES)


@pytest.mark.parametrize(("role", "subject"), _cases(MAY))
def test_a_role_may_publish_what_its_work_needs(role, subject):
    assert allowed(ROLES[role].publish, subject)


@pytest.mark.parametrize(("role", "subject"), _cases(MAY_NOT))
def test_a_role_may_not_publish_what_others_are_vouched_for(role, subject):
    assert not allowed(ROLES[role].publish, subject)


@pytest.mark.parametrize(("role", "subject"), _cases(HEARS))
def test_a_role_may_hear_what_its_work_needs(role, subject):
    assert allowed(ROLES[role].subscribe, subject)


@pytest.mark.parametrize(("role", "other"), list(itertools.permutations(access.ROLES, 2)))
def test_nobody_may_listen_in_the_inbox_of_another(role, other):
    assert allowed(ROLES[role].subscribe, f"{access.inbox(role)}.x.y")
    assert not reachable(ROLES[role].subscribe, f"{access.inbox(other)}.>")


def test_a_publisher_of_one_tenant_may_not_touch_another():
    mine = access.role_permissions("publisher", tenant="acme")
    assert allowed(mine.publish, subjects.queued(0, "acme", "echo"))
    for subject in (
        subjects.queued(0, "rival", "echo"),
        subjects.cancel(0, "rival", "echo"),
        subjects.input_blob("rival", "echo", "b", 0),
    ):
        assert not reachable(mine.publish, subject)
    assert not reachable(mine.subscribe, subjects.done(ANY, "rival", ANY, ANY, ANY))
    assert not reachable(mine.subscribe, subjects.job_event("rival", ANY, ANY))


def test_an_unknown_role_has_no_permissions():
    with pytest.raises(KeyError):
        access.role_permissions("root")


# -- workers

WORKER = access.worker_permissions("w1")
JOB = access.job_permissions("w1", shard=1, tenant="default", job="echo", classes=["normal"])
CONSUMER = subjects.job_consumer("default", "echo")


@pytest.mark.parametrize(
    "subject",
    [
        subjects.fleet("w1", "joined"),
        subjects.telemetry("w1"),
        subjects.ask_credentials("w1"),
        f"$JS.API.CONSUMER.MSG.NEXT.FLEET.{subjects.worker_consumer('w1')}",
        f"$JS.ACK.FLEET.{subjects.worker_consumer('w1')}.1.2.3.4.5",
    ],
)
def test_a_worker_may_speak_for_itself(subject):
    assert allowed(WORKER.publish, subject)


@pytest.mark.parametrize(
    "subject",
    [
        subjects.fleet("w2", ANY),
        subjects.telemetry("w2"),
        subjects.ask_credentials("w2"),
        f"$JS.API.CONSUMER.MSG.NEXT.FLEET.{subjects.worker_consumer('w2')}",
        f"$JS.ACK.FLEET.{subjects.worker_consumer('w2')}.>",
        "$JS.API.STREAM.>",
        "$JS.API.CONSUMER.CREATE.>",
        "$JS.API.CONSUMER.MSG.NEXT.Q1.*",
        "$JS.API.DIRECT.GET.>",
        subjects.ALL_INVOCATIONS,
        subjects.ALL_CONTROL,
        subjects.ALL_REGISTRY,
        subjects.ALL_PAYLOADS,
        subjects.command(ANY),
    ],
)
def test_a_worker_without_a_job_reaches_nothing_of_others(subject):
    assert not reachable(WORKER.publish, subject)


@pytest.mark.parametrize(
    "subject",
    [
        f"$JS.API.CONSUMER.MSG.NEXT.Q1.{CONSUMER}",
        f"$JS.ACK.Q1.{CONSUMER}.1.2.3.4.5",
        subjects.started(1, "default", "echo", "w1"),
        subjects.done(1, "default", "echo", "anyone", "w1"),
        subjects.output("i1", "w1"),
        subjects.log("default", "echo", "w1", "r1"),
        subjects.output_blob("default", "echo", "w1", "b", 0),
        "$JS.API.DIRECT.GET.PAYLOADS." + subjects.input_blob("default", "echo", "b", 0),
    ],
)
def test_a_worker_on_a_job_may_do_the_work_of_that_job(subject):
    assert allowed(JOB.publish, subject)


@pytest.mark.parametrize(
    "subject",
    [
        f"$JS.API.CONSUMER.MSG.NEXT.Q1.{subjects.job_consumer('default', 'other')}",
        f"$JS.API.CONSUMER.MSG.NEXT.Q1.{subjects.job_consumer('rival', 'echo')}",
        f"$JS.ACK.Q1.{subjects.job_consumer('default', 'other')}.>",
        subjects.started(ANY, ANY, ANY, "w2"),
        subjects.done(ANY, ANY, ANY, ANY, "w2"),
        subjects.done(ANY, ANY, ANY, ANY, NOBODY),
        subjects.done(ANY, "default", "other", ANY, ANY),
        subjects.done(ANY, "rival", "echo", ANY, ANY),
        subjects.output(ANY, "w2"),
        subjects.log(ANY, ANY, "w2", ANY),
        subjects.log("default", "other", ANY, ANY),
        subjects.log("rival", "echo", ANY, ANY),
        subjects.output_blob(ANY, ANY, "w2", ANY, ANY),
        subjects.input_blob(ANY, ANY, ANY, ANY),
        "$JS.API.DIRECT.GET.PAYLOADS." + subjects.input_blob("default", "other", ANY, ANY),
        "$JS.API.DIRECT.GET.PAYLOADS." + subjects.output_blob(ANY, ANY, ANY, ANY, ANY),
        "$JS.API.DIRECT.GET.INVOCATIONS.>",
        "$JS.API.STREAM.>",
        "$JS.API.CONSUMER.CREATE.>",
        subjects.ALL_QUEUED,
        subjects.ALL_FLEET,
    ],
)
def test_a_workers_rights_on_a_job_name_only_that_job_and_that_worker(subject):
    assert not reachable(JOB.publish, subject)


def test_every_right_on_a_job_names_the_job_or_the_worker():
    for subject in JOB.publish:
        tokens = {part for token in subject.split(".") for part in token.split("__")}
        assert tokens & {"echo", "w1"}, subject
        assert ">" not in tokens or subject.startswith("$JS.ACK.")


def test_a_worker_hears_its_own_inbox_and_the_cancellations_of_its_job():
    assert allowed(JOB.subscribe, subjects.cancel(1, "default", "echo"))
    assert allowed(WORKER.subscribe, subjects.command("w1"))
    for permissions in (WORKER, JOB):
        assert allowed(permissions.subscribe, f"{access.inbox('w1')}.x")
        for subject in (
            f"{access.inbox('w2')}.>",
            subjects.command("w2"),
            subjects.cancel(ANY, "default", "other"),
            subjects.ALL_QUEUED,
            subjects.output(ANY, ANY),
        ):
            assert not reachable(permissions.subscribe, subject)


def test_everything_that_a_worker_may_do_is_a_service_of_the_main_account():
    for subject in (*WORKER.publish, *JOB.publish):
        assert any(matches(service, subject) for service in access.SERVICES), subject
    for subject in (*WORKER.subscribe, *JOB.subscribe):
        mine = subject.startswith(access.inbox("w1"))
        assert mine or any(matches(each, subject) for each in access.ANNOUNCEMENTS), subject


def test_no_service_lets_the_workers_account_administer_or_submit():
    for subject in (*ADMIN[:-1], QUEUED, ASSIGNED, REGISTERED, INPUT, "$JS.API.INFO"):
        assert not any(overlap(service, subject) for service in access.SERVICES), subject


def test_the_consumers_that_rights_name_are_those_that_are_made():
    made = job_consumer("default", "echo", job(), 1)
    assert allowed(JOB.publish, f"$JS.API.CONSUMER.MSG.NEXT.Q1.{made['name']}")
    assert allowed(
        WORKER.publish, f"$JS.API.CONSUMER.MSG.NEXT.FLEET.{worker_consumer('w1', 1)['name']}"
    )


def test_the_workers_account_has_no_jetstream_and_imports_what_is_exported():
    key = jwt.public_key(jwt.new_seed("account"))
    workers, main = access.workers_account_claims(key), access.fleet_account_claims()
    assert workers["limits"]["mem_storage"] == workers["limits"]["disk_storage"] == 0
    assert main["limits"]["disk_storage"] == access.UNLIMITED
    exported = {(e["subject"], e["type"]) for e in main["exports"]}
    assert {(i["subject"], i["type"]) for i in workers["imports"]} == exported


def test_a_token_carries_exactly_the_permissions_and_ends_when_it_says():
    account, user = jwt.new_seed("account"), jwt.new_seed("user")
    token = access.user_token(
        JOB,
        account_seed=account,
        user=jwt.public_key(user),
        name="w1/echo",
        issued_at=100,
        expires_at=200,
    )
    claims = jwt.decode(token)
    assert claims["exp"] == 200
    assert claims["iss"] == jwt.public_key(account)
    assert claims["sub"] == jwt.public_key(user)
    assert claims["nats"]["pub"]["allow"] == list(JOB.publish)
    assert claims["nats"]["sub"]["allow"] == list(JOB.subscribe)
