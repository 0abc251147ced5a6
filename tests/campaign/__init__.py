"""A campaign of faults: `python -m tests.campaign` breaks pictures, bundles, words, memory and processes, for as long as it is
given, and reports what no user should meet: a crash, a hang, memory that grows, a wrong mask, an error without a kind.

A kind of faults is one module here: all but those of PARTS are. The first line of its docstring says what is broken. It has

    def case(number: int, random: Random, bench: Bench) -> Case

which makes its case `number` of 0, 1, 2, … without end. `random` is seeded by kind, seed and number, so that a case's name,
KIND-SEED-NUMBER, makes it again. The runner runs each kind's cases one after another in a process of the kind's own:
a signal that ends it, a limit that passes, an exception that escapes `run`, and memory that is not given back are findings
without more ado. A case that wants an error catches FusionerError and returns None.
"""

from pathlib import Path

PARTS = ("cases", "reference", "runner", "worker")
KINDS = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py") if file.stem not in PARTS))
