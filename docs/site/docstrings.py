"""Docstrings of this repository as Markdown, for mkdocstrings.

Ours say a parameter as `name: what it is`, and a table as a name and two spaces. In Markdown all of that would run together: here
each becomes an item of a list.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_NAMED = re.compile(r"^(\w+(?:, \w+)*): ")
_NEXT = re.compile(r"(?<=\.)\s+(?=[a-z_]\w*(?:, [a-z_]\w*)*: )")
"""Between two parameters that share a line."""
_ROW = re.compile(r"^(\.\S+(?: \.\S+)*) {2,}")
_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


def as_markdown(text: str) -> str:
    """A docstring, without its indentation, as Markdown."""
    return _PAGE.sub(r"[\1](\1.md)", "\n\n".join(_paragraph(part) for part in text.split("\n\n")))


def _paragraph(text: str) -> str:
    """An example of several lines fenced; else sentences, and a list of what has names."""
    if "\n" in text.strip() and "(" in text and _is_python(text):
        return f"```python\n{text.strip()}\n```"
    parts: list[list[str]] = []
    for line in text.splitlines():
        begins = _NAMED.match(line) or _ROW.match(line) or re.match(r"(Raises|Returns|Yields) ", line)
        if not parts or begins:
            parts.append([])
        parts[-1].append(line)
    return "\n\n".join(_part("\n".join(lines)) for lines in parts)


def _part(text: str) -> str:
    """A sentence or some, or what is said of a name, or of several."""
    if _ROW.match(text):
        return _ROW.sub(r"- `\1` ", text)
    if not _NAMED.match(text):
        return text
    return "\n".join(_NAMED.sub(r"- `\1`: ", one) for one in _NEXT.split(text))


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


class Docstrings(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
