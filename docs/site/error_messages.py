"""What errors say, read from the source: every message that a class is raised with, and its cure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Message(NamedTuple):
    """A message of a kind of errors, … for what is filled in.

    kind: the class. text: the line, subject: found; cure. found, cure: its parts, "" where the source does not spell them.
    """

    kind: str
    text: str
    found: str
    cure: str


def template(node: ast.AST, constants: dict[str, str]) -> str:
    """A string's text, … for what is filled in. constants: texts of the module's own names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id, "")
    if isinstance(node, ast.FormattedValue):
        return template(node.value, constants) if isinstance(node.value, ast.Name) else ""
    parts: list[ast.expr] = []
    if isinstance(node, ast.JoinedStr):
        parts = node.values
    elif isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    return "".join(template(part, constants) or "…" for part in parts)


def constants_of(tree: ast.Module) -> dict[str, str]:
    """Module-level names of texts."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {
        target.id: str(node.value.value)
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)
    }


def raised(file: Path, known: set[str]) -> Iterator[Message]:
    """Every message in a file: of calls of a class, or of functions that return one, their three facts in one line; and of
    pairs of a class and a text. known: the names of the classes.
    """
    tree = ast.parse(file.read_text())
    constants = constants_of(ast.parse((ROOT / "fusioner_rt" / "cures.py").read_text())) | constants_of(tree)
    makers = {
        node.name: node.returns.id
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in known
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = [part.id for part in ast.walk(node.func) if isinstance(part, ast.Name)]
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            named += [makers[name] for name in (called, *named) if name in makers]
            if not any(template(part, constants) for part in node.args):
                continue
            found = template(node.args[0], constants)
            cure = _spelled(node.args[1], constants) or "…" if len(node.args) > 1 else ""
            texts = [(template(_facts(node), constants), found, cure)]
        elif isinstance(node, ast.Tuple):
            named = [part.id for part in node.elts if isinstance(part, ast.Name)]
            texts = [(text, text, "") for text in (template(part, constants) for part in node.elts)]
        else:
            continue
        for name in sorted(set(named) & known):
            yield from (Message(name, *text) for text in texts if text[0])


def _spelled(node: ast.expr, constants: dict[str, str]) -> str:
    """A cure as the API says it; of a choice between two both."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Spelled":
        return template(node.args[0], constants)
    if isinstance(node, ast.IfExp):
        return "; or: ".join(filter(None, (_spelled(one, constants) for one in (node.body, node.orelse))))
    return template(node, constants)


def _facts(call: ast.Call) -> ast.JoinedStr:
    """subject: found; cure, as the error says it."""
    subjects = [keyword.value for keyword in call.keywords if keyword.arg == "subject"]
    found, *cure = call.args or [ast.Constant("")]
    return ast.JoinedStr(
        [*_with_ends(subjects, ": "), found, *(part for one in cure for part in (ast.Constant("; "), one))]
    )


def _with_ends(parts: list[ast.expr], end: str) -> list[ast.expr]:
    return [one for part in parts for one in (part, ast.Constant(end))]
