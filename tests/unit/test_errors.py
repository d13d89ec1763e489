"""Errors: one tree, a code each, and words that a person can act on."""

from __future__ import annotations

import inspect
import re

import pytest

from given import completed
from jetfleet import errors
from jetfleet.errors import JetfleetError

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, JetfleetError)
]
NEEDS = {
    errors.OutcomePending: {"invocation": "i1"},
    errors.MissingExtra: {"extra": "gateway", "why": "the gateway"},
    errors.ApiError: {"status": 400, "err_code": 10025, "description": "bad request"},
    errors.WrongSequence: {"status": 400, "err_code": 10071, "description": "wrong sequence"},
}


def made(kind: type[JetfleetError]) -> JetfleetError:
    if issubclass(kind, errors.InvocationError):
        return kind("it ended", outcome=completed("i1", 1))
    return kind(**NEEDS.get(kind, {}))


def test_the_tree_at_the_top_of_the_file_is_the_tree():
    drawn = re.findall(r"(?:├──|└──) (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(kind.__name__ for kind in TREE if kind is not JetfleetError)


def test_every_error_has_a_code_of_its_own():
    codes = [kind.code for kind in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_error_without_words_of_its_own_says_what_its_class_means(kind):
    error = made(kind)
    assert str(error)
    if kind not in NEEDS and not issubclass(kind, errors.InvocationError):
        assert str(error) == (kind.__doc__ or "").strip()


def test_a_missing_extra_names_the_command_that_installs_it():
    error = errors.MissingExtra("gateway", "the gateway")
    assert "pip install 'jetfleet[gateway]'" in str(error)


def test_refusals_carry_what_an_answer_needs():
    assert errors.QueueFull("full", retry_after_s=3).retry_after_s == 3
    assert errors.InvalidRequest("no", field="input").field == "input"
    assert errors.OutcomePending(invocation="i1").invocation == "i1"


def test_what_to_try_again_and_what_not_is_told_by_the_base():
    again = {kind for kind in TREE if issubclass(kind, errors.Unavailable)}
    assert again == {
        errors.Unavailable, errors.BrokerUnavailable, errors.NoResponders, errors.LogFull,
        errors.QueryUnavailable,
    }  # fmt: skip
    assert not any(issubclass(kind, errors.Refused) for kind in again)
