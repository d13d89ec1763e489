"""Allotment: given what jobs want and what there may be, then who gets how much, and why."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetfleet.policies.allotment import Claim, allot


def granted(claims: list[Claim], **limits) -> dict[str, int]:
    return {each.claim.job: each.granted for each in allot(claims, **limits)}


def test_with_enough_for_all_each_gets_what_it_wants_without_a_word():
    claims = [Claim("acme", "a", 3), Claim("acme", "b", 2)]
    assert granted(claims) == granted(claims, fleet_limit=5) == {"a": 3, "b": 2}
    assert [each.reason for each in allot(claims, fleet_limit=5)] == ["", ""]


def test_equal_jobs_share_equally_and_what_one_does_not_need_goes_to_the_others():
    claims = [Claim("acme", "a", 10), Claim("acme", "b", 10), Claim("acme", "c", 1)]
    assert granted(claims, fleet_limit=7) == {"a": 3, "b": 3, "c": 1}


def test_a_job_of_higher_priority_is_served_before_others_share():
    claims = [Claim("acme", "batch", 10), Claim("acme", "live", 4, priority=10)]
    assert granted(claims, fleet_limit=6) == {"batch": 2, "live": 4}


def test_minimums_come_before_shares():
    claims = [Claim("acme", "a", 10), Claim("acme", "b", 10, min_replicas=4)]
    assert granted(claims, fleet_limit=5) == {"a": 1, "b": 4}


def test_a_weight_of_two_makes_a_double_share():
    claims = [Claim("acme", "a", 10), Claim("acme", "b", 10, weight=2.0)]
    assert granted(claims, fleet_limit=6) == {"a": 2, "b": 4}


def test_a_tenant_at_its_limit_leaves_the_rest_to_others():
    claims = [Claim("acme", "a", 10), Claim("umbrella", "b", 10)]
    assert granted(claims, fleet_limit=12, tenant_limits={"acme": 2}) == {"a": 2, "b": 10}


def test_the_reason_says_which_limit_it_was():
    claims = [Claim("acme", "a", 10), Claim("umbrella", "b", 20)]
    first, second = allot(claims, fleet_limit=12, tenant_limits={"acme": 2})
    assert first.reason == (
        "2 of 10 wanted, at priority 0: tenant acme has as many replicas as it may"
    )
    assert second.reason == (
        "10 of 20 wanted, at priority 0: the fleet has as many replicas as it may"
    )


_CLAIMS = st.lists(
    st.builds(
        Claim,
        st.sampled_from(["acme", "umbrella"]),
        st.sampled_from("abcdefgh"),
        st.integers(0, 30),
        st.integers(0, 10),
        st.integers(0, 2),
        st.sampled_from([0.5, 1.0, 3.0]),
    ),
    max_size=8,
    unique_by=lambda claim: claim.key,
)


@given(_CLAIMS, st.integers(0, 60), st.integers(0, 40))
def test_no_limit_is_passed_nothing_is_wasted_and_order_does_not_matter(claims, fleet, acme):
    found = allot(claims, fleet_limit=fleet, tenant_limits={"acme": acme})
    assert [each.claim for each in found] == claims
    assert all(0 <= each.granted <= each.claim.desired for each in found)
    assert all(bool(each.reason) == (each.granted < each.claim.desired) for each in found)
    total = sum(each.granted for each in found)
    of_acme = sum(each.granted for each in found if each.claim.tenant == "acme")
    assert total <= fleet
    assert of_acme <= acme
    for each in found:
        if each.granted < each.claim.desired:
            assert total == fleet or (each.claim.tenant == "acme" and of_acme == acme)
    backwards = allot(claims[::-1], fleet_limit=fleet, tenant_limits={"acme": acme})
    assert backwards == found[::-1]


@given(_CLAIMS, st.integers(0, 60))
def test_a_larger_fleet_takes_from_nobody(claims, fleet):
    few, many = allot(claims, fleet_limit=fleet), allot(claims, fleet_limit=fleet + 1)
    assert all(a.granted <= b.granted for a, b in zip(few, many, strict=True))


@given(_CLAIMS, st.integers(0, 60))
def test_lower_priority_gets_nothing_while_higher_goes_short(claims, fleet):
    found = allot(claims, fleet_limit=fleet)
    for high in found:
        for low in found:
            if high.claim.priority > low.claim.priority and high.reason:
                assert low.granted == 0
