"""What an error holds, and the line that it is."""

import copy
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner_rt import errors
from fusioner_rt.errors import FusionerError, UsageError
from fusioner_rt.printable_text import printable

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FusionerError)]
texts = st.text(min_size=1, max_size=9)


@given(st.sampled_from(KINDS), texts, st.one_of(st.just(""), texts), st.one_of(st.none(), texts))
def test_an_error_is_one_line_of_three_facts(
    kind: type[FusionerError], found: str, cure: str, subject: str | None
) -> None:
    error = kind(found, cure, subject=subject)
    assert (error.found, error.cure, error.subject) == (found, cure, subject)
    what = printable(" ".join((found if subject is None else f"{subject}: {found}").splitlines()))
    assert error.what == what
    assert str(error) == (printable(" ".join(f"{what}; {cure}".splitlines())) if cure else what)
    assert len(str(error).splitlines()) <= 1
    assert printable(str(error)) == str(error)
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(same) is kind
        assert str(same) == str(error)


def test_a_line_that_names_the_subject_leaves_it_out() -> None:
    error = UsageError("is unknown", "choose another", subject="backend cpu")
    assert str(error.without("backend cpu")) == "is unknown; choose another"
    assert error.without("backend gpu") is error
    assert str(FusionerError("cannot be read", subject=Path("a/b"))) == "a/b: cannot be read"


def test_every_kind_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_it_is(kind: type[FusionerError]) -> None:
    assert kind.__doc__
