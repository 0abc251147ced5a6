"""The stages of a build and the signals to end it."""

from __future__ import annotations

import contextlib
import signal

import pytest

from export import stages
from fusioner_rt.interrupts import exit_code, signals_heard


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["INT", "TERM", "HUP"]
)
def test_an_interrupt_that_a_library_swallowed_ends_the_build_with_the_stage(sent: signal.Signals, code: int) -> None:
    done: list[str] = []

    def swallows() -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(sent)
        done.append("first")

    before = signal.getsignal(sent)
    with signals_heard(), pytest.raises(KeyboardInterrupt) as raised:
        stages.Stages(shown=False).run([("first", swallows), ("second", lambda: done.append("second"))])
    assert exit_code(raised.value) == code
    assert done == ["first"]
    assert signal.getsignal(sent) is before
