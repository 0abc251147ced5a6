"""Writes what the site is built from: the pages of docs/, some of the repository's own, and lists that are made of the code.

  python docs/site/write_source.py build/site-source

Links of a page lead to files of the repository, so that it can be read there too. They become links within the site; a file
that is no page of it is copied to files/.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import posixpath
import re
import runpy
import shutil
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from error_messages import Message, raised  # noqa: E402

from fusioner_rt import errors  # noqa: E402
from fusioner_rt.errors import FusionerError  # noqa: E402

PAGES = {
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "models/demo/README.md": "demonstration.md",
    "docs/pictures/README.md": "photographs.md",
    "README.md": "index.md",
}
"""Pages that lie elsewhere than in docs/, by their path. The README itself is none: the start page is in its place."""
COMMANDS = (
    ("fusioner-rt", ["-m", "fusioner_rt"]),
    *((f"fusioner-rt {name}", ["-m", "fusioner_rt", name]) for name in ("segment", "serve", "info", "doctor", "words", "fetch")),
    *((f"python {file}", [file]) for file in ("export/build_engine.py", "export/add_plans.py", "export/triton_repository.py")),
    *((f"python -m {name}", ["-m", name]) for name in ("training.train", "training.evaluate", "training.datasets")),
)  # fmt: skip
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^()#\s]+)")
_NAMED = re.compile(r"\[(?:docs/)?(\w+\.md)\](?=\()")
"""The name of a page as the text of a link, which is the page's title on the site."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder; what lies there is replaced")
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """All files of the site's source. out: a folder, which is replaced."""
    shutil.rmtree(out, ignore_errors=True)
    for file in sorted((ROOT / "docs").rglob("*")):
        if file.is_file() and file.suffix not in (".md", ".py", ".pyc"):
            _copy(file, out / file.relative_to(ROOT / "docs"))
    menu = (ROOT / "mkdocs.yml").read_text()
    titles = {page: title for title, page in re.findall(r"^ +- ([^:]+): (\w+\.md)$", menu, flags=re.MULTILINE)}
    made = {"commands": commands, "errors": list_of_errors}
    pages = [*sorted(path.name for path in (ROOT / "docs").glob("*.md")), *PAGES]
    if unnamed := {PAGES.get(page, page) for page in pages} - titles.keys():
        raise SystemExit(f"no menu of mkdocs.yml names {', '.join(sorted(unnamed))}")
    for name in pages:
        path = PurePosixPath(name if name in PAGES else f"docs/{name}")
        if name == "README.md":
            continue
        text = (ROOT / path).read_text()
        for what, make in made.items():
            if f"<!-- made: {what} -->" in text:
                text = text.replace(f"<!-- made: {what} -->", make())
        place = out / site_path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = _LINK.sub(lambda link, path=path: _within(path, link[1], out), text)
        text = re.sub(r"^\|.*", _bars, text, flags=re.MULTILINE)
        place.write_text(_NAMED.sub(lambda link: f"[{titles.get(link[1], link[1])}]", text))


def site_path(path: PurePosixPath) -> str:
    """Where a file of the repository lies in the site's source."""
    if str(path) in PAGES:
        return PAGES[str(path)]
    return str(path.relative_to("docs")) if path.parts[0] == "docs" else f"files/{path}"


def _within(page: PurePosixPath, target: str, out: Path) -> str:
    """A link of a page, as a link within the site."""
    path = PurePosixPath(posixpath.normpath(page.parent / target))
    place = site_path(path)
    if place.startswith("files/") and (ROOT / path).is_file():
        _copy(ROOT / path, out / place)
    return os.path.relpath(place, PurePosixPath(site_path(page)).parent)


def _bars(row: re.Match[str]) -> str:
    """A table's row whose bars in code are those of GitHub's form, in that of Python-Markdown, which needs no escape."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0])


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)


def commands() -> str:
    """The help of every command, as it prints it in a terminal of 100 columns."""
    os.environ["COLUMNS"] = "100"
    return "\n".join(f"## `{name}`\n\n```text\n{help_of(command).rstrip()}\n```\n" for name, command in COMMANDS)


def help_of(command: list[str]) -> str:
    """What a command prints for --help. They run in this process, so that torch is imported once."""
    told, before = io.StringIO(), sys.argv
    module = command[1] if command[0] == "-m" else None
    sys.argv = [*(command[1:] if module else command), "--help"]
    try:
        with contextlib.redirect_stdout(told):
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / command[0]), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = before
    return told.getvalue()


def kinds() -> list[type[FusionerError]]:
    """The kinds of errors of the runtime and its service, by code."""
    from fusioner_rt.serve.errors import ServiceError

    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FusionerError)]
    return sorted([*own, ServiceError, *ServiceError.__subclasses__()], key=lambda kind: kind.exit_code)


def list_of_errors() -> str:
    """A section for each kind: its code, whose fault it is, the cause, and what it is raised with."""
    from fusioner_rt.serve.problem import status_of

    listed = kinds()
    names = {kind.__name__ for kind in listed}
    said: dict[str, list[Message]] = {name: [] for name in names}
    for file in sorted((ROOT / "fusioner_rt").rglob("*.py")):
        for message in raised(file, names):
            if message not in said[message.kind]:
                said[message.kind].append(message)
    sections = []
    for kind in listed:
        whose = "the caller's input" if kind.is_input else "the installation, the bundle or the machine"
        parts = [
            f"## {kind.exit_code} {kind.__name__}",
            " ".join(str(inspect.getdoc(kind)).split()),
            f"At fault: {whose}. HTTP status: {status_of(kind(''))}.",
        ]
        told = [message for message in said[kind.__name__] if message.found.strip("… ")]
        if told:
            rows = [f"| {_cell(message.found)} | {_cell(message.cure)} |" for message in told]
            parts.append("\n".join(["| it says | what to do |", "|---|---|", *rows]))
        sections.append("\n\n".join(parts) + "\n")
    return "\n".join(sections)


def _cell(text: str) -> str:
    """A text in a table's cell: as it is written, in no other form."""
    text = " ".join(text.split()).strip()
    if not text.strip("… "):
        return "the message says it" if text else ""
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}" if letter not in "<>|" else f"&#{ord(letter)};")
    return text


if __name__ == "__main__":
    main()
