"""Docstrings of this repository as Markdown, for mkdocstrings.

Ours say a parameter as `name: what it is`, lines that are indented belonging to it, and a table as a name and two spaces. In
Markdown all of that would run together: here each becomes an item of a list.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_NAMED = re.compile(r"^(\w+(?:, \w+)*): (.*)$")
_ROW = re.compile(r"^(\.\S+(?: \.\S+)*) {2,}(\S.*)$")
_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


def as_markdown(text: str) -> str:
    """A docstring, without its indentation, as Markdown."""
    text = "\n\n".join(_code(part) for part in text.split("\n\n"))
    lines: list[str] = []
    in_item = False
    for line in text.splitlines():
        named, row = _NAMED.match(line), _ROW.match(line)
        if named or row:
            if lines and lines[-1] and not in_item:
                lines.append("")
            name, rest = (named or row).groups()  # type: ignore[union-attr]
            lines.append(f"- `{name}`: {rest}" if named else f"- `{name}` {rest}")
            in_item = True
        elif in_item and line.startswith("    "):
            lines.append(line)
        else:
            if line and (in_item or re.match(r"(Raises|Returns) ", line)) and lines and lines[-1]:
                lines.append("")
            lines.append(line)
            in_item = False
    return _PAGE.sub(r"[\1](\1.md)", "\n".join(lines))


def _code(paragraph: str) -> str:
    """A paragraph, fenced where it is an example of several lines."""
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return paragraph
    return f"```python\n{paragraph.strip()}\n```" if "\n" in paragraph.strip() and "(" in paragraph else paragraph


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
