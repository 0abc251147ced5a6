"""The stages of a build and the signals to end it."""

from __future__ import annotations

import contextlib
import signal

import pytest

from export import stages


@pytest.mark.parametrize(
    ("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupt_that_a_library_swallowed_ends_the_build_with_the_stage(
    monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, raised: type[BaseException]
) -> None:
    done: list[str] = []

    def swallows() -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(sent)
        done.append("first")

    monkeypatch.setattr(stages, "_asked_to_end", [])
    before = [signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stages.hear_signals()
        with pytest.raises(raised):
            stages.Stages(shown=False).run([("first", swallows), ("second", lambda: done.append("second"))])
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert done == ["first"]
