"""The campaign's command line."""

import argparse
import ast
import math
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path

from fusioner_rt.command_parser import count

from . import KINDS, __doc__
from .runner import ROOT, Kind, Report, campaign, stopped

SEED = 18
_EXAMPLES = """\
examples:
  python -m tests.campaign                                    two minutes, as CI does
  python -m tests.campaign --minutes 60 --json campaign.jsonl before a release; the file's lines are its record
  python -m tests.campaign --only pictures,bundles --cases 500
  python -m tests.campaign --case pictures-18-42              a finding again; what it was made of lies in --keep

exit code: 0 without findings, 1 with some, 130 where it was interrupted.
"""


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="fusioner-campaign-"))
    names = [options.case.rsplit("-", 2)[0]] if options.case else options.only or KINDS
    seed = int(options.case.rsplit("-", 2)[1]) if options.case else options.seed
    kinds = [Kind(name, seed, options.bundle.absolute(), scratch, options.keep) for name in names]
    minutes = options.minutes or (math.inf if options.cases else 2.0)
    lines = open(options.json, "w") if options.json else None  # noqa: SIM115
    report, interrupted = Report(kinds, minutes, lines), False
    print(f"seed {seed}, {', '.join(names)}, on {options.bundle}", file=sys.stderr)
    try:
        if options.case:
            report.progress(kinds[0].run(int(options.case.rsplit("-", 2)[2])))
        else:
            campaign(kinds, minutes, options.cases, options.workers, report)
        for finding in stopped(kinds):
            report.finding(finding)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        for kind in kinds:
            kind.stop()
        shutil.rmtree(scratch, ignore_errors=True)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }
    report.summary(
        {"summary": True, "seed": seed, "bundle": os.path.relpath(options.bundle), **machine,
         "interrupted": interrupted}
    )  # fmt: skip
    if lines:
        lines.close()
    if interrupted:
        return 130
    if any(kind.findings for kind in kinds):
        print("one again: python -m tests.campaign --case NAME", file=sys.stderr)
        return 1
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    kinds = "\n".join(f"  {name}: {_first_line(name)}" for name in KINDS)
    parser = argparse.ArgumentParser(
        "python -m tests.campaign", description=__doc__.partition("\n\n")[0], epilog=f"kinds:\n{kinds}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=_minutes, help="how long, shared evenly by the kinds (2)")
    parser.add_argument("--cases", type=count, metavar="N", help="so many of each kind, however long they take")
    parser.add_argument("--seed", type=int, default=SEED, help=f"another one makes other cases ({SEED})")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="KIND,…", help="these kinds alone")
    parser.add_argument("--case", metavar="NAME", help="run this case again")
    parser.add_argument(
        "--bundle", type=Path, default=ROOT / "models/demo/bundle", help="the bundle it runs on (the demo's)"
    )
    parser.add_argument("--workers", type=count, default=1, help="kinds that run at the same time (1)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write a line of JSON for each finding, and the summary"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("output/campaign"), metavar="DIR",
        help="where the smallest input of each finding goes (output/campaign)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    case = re.fullmatch(r"(.+)-(\d+)-(\d+)", options.case) if options.case else None
    if options.case and not case:
        parser.error(f"{options.case!r} names no case; a case is named KIND-SEED-NUMBER")
    if not options.bundle.is_dir():
        parser.error(f"there is no bundle {options.bundle}")
    for name in [case[1]] if case else options.only or ():
        if name not in KINDS and "." not in name:
            parser.error(f"there is no kind {name}; there are {', '.join(KINDS)}")
    return options


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise ValueError
    return minutes


def _first_line(kind: str) -> str:
    text = Path(__file__).with_name(f"{kind}.py").read_text()
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
