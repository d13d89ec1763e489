"""Join tokens, and who is let in: pure judgements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from given import admitted, at, fleet, joined, left, token_revoked
from jetfleet import access, joining, jwt, subjects
from jetfleet.errors import InvalidRequest
from jetfleet.joining import BadToken, JoinToken, Terms
from jetfleet_projections.conductor_joining import Asker, NotAdmitted, judge
from nats_rules import allowed, matches, reachable

ACCOUNT = jwt.new_seed("account")
TERMS = Terms("t1", 2_000, trusted=True, owner="ada", labels={"a": "b"}, uses=3)
LIFE_S = 3600.0


def made(terms: Terms = TERMS) -> JoinToken:
    return joining.issue(terms, account_seed=ACCOUNT, now=1_000, url="wss://x")


def test_a_token_comes_back_from_its_string():
    token = made()
    again = JoinToken.parse(f" {token.text()}\n")
    assert again == token
    assert again.terms == TERMS
    assert joining.verified(again.jwt_text, jwt.public_key(ACCOUNT)) == TERMS


def test_a_token_shows_its_seed_to_nobody_who_prints_it():
    token = made()
    assert token.seed.decode() not in repr(token)


def test_a_cut_or_altered_token_is_refused():
    text = made().text()
    for broken in (text[:-40], text[:60], text.replace("jfj_", "jfx_"), text[:90] + text[94:]):
        with pytest.raises(BadToken):
            joining.verified(JoinToken.parse(broken).jwt_text, jwt.public_key(ACCOUNT))


def test_terms_cannot_be_signed_by_anybody_else():
    with pytest.raises(BadToken, match="forged"):
        joining.verified(made().jwt_text, jwt.public_key(jwt.new_seed("account")))
    head, _, signature = made().jwt_text.split(".")
    _, better, _ = made(replace(TERMS, uses=999)).jwt_text.split(".")
    with pytest.raises(BadToken, match="forged"):
        joining.verified(f"{head}.{better}.{signature}", jwt.public_key(ACCOUNT))


def test_another_token_of_the_account_is_no_join_token():
    token = access.user_token(
        access.worker_permissions("w1"), account_seed=ACCOUNT,
        user=jwt.public_key(jwt.new_seed("user")), name="w1", issued_at=1,
    )  # fmt: skip
    with pytest.raises(BadToken):
        joining.verified(token, jwt.public_key(ACCOUNT))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("24h", 86400),
                                               ("7d", 604800)])  # fmt: skip
def test_a_duration_is_read(text, seconds):
    assert joining.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "0h", "-1h", "1.5h", "1w", "24", "1h30m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidRequest, match="no duration"):
        joining.seconds_of(text)


def test_labels_are_read():
    assert joining.labels_of(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b", ""):
        with pytest.raises(InvalidRequest, match="no label"):
            joining.labels_of([wrong])


# -- rights


def test_a_holder_may_ask_for_its_token_and_hear_its_inbox_alone():
    may = access.join_permissions("t1")
    assert may.publish == (subjects.ask_join("t1"),)
    assert any(matches(service, may.publish[0]) for service in access.SERVICES)
    assert may.subscribe == ("_INBOX_JOIN_t1.>",)
    for other in ("t2", "w1"):
        assert not reachable(may.subscribe, f"{access.inbox(other)}.>")
    # no worker's name can make its inbox that of a token
    assert not subjects.is_name(access.join_user("t1"))


def test_a_worker_may_not_admit_itself_nor_revoke():
    may = access.worker_permissions("w1").publish
    for subject in (subjects.admitted("w1"), subjects.revoked("t1"), subjects.ask_join("t1")):
        assert not allowed(may, subject)
    operator = access.role_permissions("operator").publish
    assert allowed(operator, subjects.revoked("t1"))
    assert not allowed(operator, subjects.admitted("w1"))
    assert allowed(access.role_permissions("conductor").publish, subjects.admitted("w1"))


# -- judging


def asker(worker: str = "w1", key: str = "K1", **terms: object) -> Asker:
    return Asker(worker, key, replace(TERMS, trusted=False, owner="", **terms))


def verdict(state, who: Asker, seconds: float = 0) -> bool | str:
    """Whether it is written down, or the code of the refusal."""
    try:
        return judge(state, who, at(seconds), LIFE_S)
    except NotAdmitted as refused:
        return refused.code


def test_a_newcomer_is_written_down_and_the_same_again_is_not():
    assert verdict(fleet(), asker()) is True
    assert verdict(fleet(admitted("w1", "t1", public_key="K1")), asker()) is False


def test_uses_are_counted_by_worker_and_key():
    state = fleet(admitted("w1", "t1", public_key="K1"), admitted("w2", "t1", public_key="K2"))
    assert verdict(state, asker("w3", "K3", uses=2)) == "used_up"
    assert verdict(state, asker("w3", "K2", uses=2)) == "used_up"
    assert verdict(state, asker("w3", "K3", uses=3)) is True
    assert verdict(state, asker("w2", "K2", uses=2)) is False


def test_a_revoked_token_lets_nobody_in_not_even_who_came_before():
    state = fleet(admitted("w1", "t1", public_key="K1"), token_revoked("t1"))
    assert verdict(state, asker()) == "revoked"
    assert verdict(state, asker(token="t2")) is True


def test_a_name_belongs_to_the_key_that_is_at_work():
    state = fleet(admitted("w1", "t1", public_key="K1"), joined("w1"))
    assert verdict(state, asker(key="K2")) == "name_taken"
    assert verdict(fleet(left("w1"), onto=state), asker(key="K2")) is True


def test_a_name_is_kept_for_who_was_let_in_and_has_not_joined_yet():
    state = fleet(admitted("w1", "t1", public_key="K1"))
    assert verdict(state, asker(key="K2"), LIFE_S - 1) == "name_taken"
    assert verdict(state, asker(key="K2"), LIFE_S + 1) is True


def test_a_name_goes_on_to_the_same_owner_and_trust_only():
    state = fleet(admitted("w1", "t1", public_key="K1", trusted=True), joined("w1"), left("w1"))
    assert verdict(state, asker(key="K2")) == "name_taken"


def test_the_name_of_a_worker_without_a_token_is_never_given_away():
    assert verdict(fleet(joined("w1"), left("w1")), asker()) == "name_taken"


# -- folding


def test_a_worker_that_was_admitted_cannot_claim_more_under_any_key():
    said = joined("w1")
    claim = said.data.model_copy(
        update={"trusted": True, "owner": "root", "public_key": "K9", "labels": {"a": "1"}}
    )
    lie = said.model_copy(update={"data": claim})
    state = fleet(admitted("w1", "t1", public_key="K1", owner="ada", labels={"a": "2"}), lie)
    worker = state.workers["w1"]
    assert (worker.trusted, worker.owner, worker.labels) == (False, "ada", {"a": "2"})
    plain = fleet(lie).workers["w1"]
    assert (plain.trusted, plain.owner) == (True, "root")


def test_admissions_and_revocations_count_as_decisions():
    state = fleet(admitted("w1", "t1"), token_revoked("t1"))
    assert (state.seq, state.control_seq) == (2, 2)


@pytest.mark.parametrize("text", ["", "hello", "jfj_", "jfj_e30", "jfj_%%%", "jfj_bnVsbA"])
def test_what_is_no_token_is_said_to_be_none(text):
    with pytest.raises(BadToken):
        JoinToken.parse(text)
