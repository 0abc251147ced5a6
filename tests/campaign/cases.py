"""What a kind of faults is written with: a case, and the bench it is made on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """One fault, ready to run.

    run: returns None, or what is wrong in a sentence. Exceptions that escape it are findings too.
    what: the fault, in a few words, for the report.
    seconds: CPU time that `run` may take, of its process and of children it waited for.
    hangs: seconds of the clock after which it counts as hanging, on a machine that may be busy with others' work.
    memory: bytes that the process may grow by while it runs.
    """

    run: Callable[[], str | None]
    what: str
    seconds: float = 5.0
    hangs: float = 60.0
    memory: int = 2 << 30


@dataclass
class Bench:
    """What the cases of one process share.

    bundle: the folder of the bundle the campaign runs on, which no case changes.
    folder: an empty folder of the case's own. The case writes its input there before `run`; it is kept with a finding, else
        removed.
    """

    bundle: Path
    folder: Path
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns: made by the first case that asks, kept for those that follow. Its time counts for no case."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
