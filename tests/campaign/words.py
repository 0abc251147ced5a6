"""Words, templates, thresholds and sizes of any type and script: an error, or the same result twice."""

import string
import unicodedata
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from fusioner_rt import Session
from fusioner_rt.errors import FusionerError

from .cases import Bench, Case
from .reference import fingerprint, pictures, quick

_SIMPLE = ("cat", "sofa", "green grass", "dining table", "bus", "tree", "a", "Köln", "猫", "кошка", "قط")
_SIGNS = ",;|\n\r\t\0 \"'“”«»()[]{}/\\.-_#%$\u200b\u200d\u202e\ufeff\ufffd\u0301\u0336\u3000\u00a0\u2028"
_SEQUENCES = (
    "👨‍👩‍👧‍👦",
    "🇩🇪",
    "e\u0301" * 3,
    "Z" + "\u0336" * 40,
    "ﷺ",
    "ﬁ",
    "İ",
    "ß",
    "\ud800",
    "\udfff x",
    "\U0010ffff",
    "\x1b[31m",
    "{category}",
)


def case(number: int, random: Random, bench: Bench) -> Case:
    session = bench.once("session", lambda: Session(quick(bench), cache=False, threads=1, backend="onnxruntime-cpu"))
    picture = bench.once("picture", lambda: pictures()[2])
    encoded = bench.once("encoded", lambda: session.encode(picture))
    asked = _options(random)
    templates = _templates(random) if random.random() < 0.15 else None

    def run() -> str | None:
        if templates is not None:
            return _with_templates(bench, templates, asked)
        try:
            first = session.segment(encoded, **asked)
        except FusionerError as error:
            return _unclear(error)
        if fingerprint(session.segment(encoded, **asked)) != fingerprint(first):
            return "the same call gives another result"
        if not (np.isfinite(first.confidence).all() and first.labels.max() <= len(first.words)):
            return "its labels or confidences are none"
        return None

    shown = ascii({**asked, **({"templates": templates} if templates is not None else {})})
    (bench.folder / "call.txt").write_text(shown)
    return Case(run, shown[:300], seconds=30)


def _with_templates(bench: Bench, templates: Any, asked: dict[str, Any]) -> str | None:
    """In a session of its own: the next case has the bundle's templates again."""
    others = {name: value for name, value in asked.items() if name not in ("words", "background")}
    try:
        with Session(quick(bench), cache=False, threads=1, backend="onnxruntime-cpu") as session:
            session.set_vocabulary(asked["words"], templates, asked.get("background"))
            session.segment(pictures()[2], **others)
    except FusionerError as error:
        return _unclear(error)
    return None


def _unclear(error: FusionerError) -> str | None:
    """Messages reach logs and terminals: one line, of no endless length, without control characters."""
    text = str(error)
    if len(text) > 2000:
        return f"its message has {len(text)} characters: {text[:60]!a}"
    if any(unicodedata.category(sign) == "Cc" for sign in text):
        return f"its message holds control characters: {text[:200]!a}"
    return None


def _options(random: Random) -> dict[str, Any]:
    asked: dict[str, Any] = {"words": _words(random)}
    if random.random() < 0.2:
        asked["background"] = random.choice((_words(random), "common", "", None, 3))
    if random.random() < 0.25:
        asked["threshold"] = _threshold(random, asked["words"])
    if random.random() < 0.15:
        edges = (0, -1, 1, 7, 64, 3.0, True, None, 10**9, 2**64, np.int32(5), "5", float("nan"))
        asked["size"] = random.choice(
            ((random.choice(edges), random.choice(edges)), [5], (1, 2, 3), 5, "64x64", np.array([4, 5]))
        )
    if random.random() < 0.2:
        asked["mode"] = random.choice(("independent", "independent", "Joint", "", None, b"joint", ["joint"]))
    if random.random() < 0.1:
        asked["probabilities"] = random.choice((True, 1, "yes", None, np.bool_(True)))
    return asked


def _words(random: Random) -> Any:
    """A vocabulary: mostly few words, in every form that is taken, and in some that are not."""
    words = [_word(random) for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 4)))]
    forms: tuple[Callable[[], Any], ...] = (
        lambda: words, lambda: words, lambda: ", ".join(words), lambda: "|".join(words), lambda: tuple(words),
        lambda: [words, *words[:1]], lambda: dict.fromkeys(words, words), lambda: iter(words), lambda: set(words),
        lambda: np.array(words), lambda: [*words, random.choice((None, 3, b"cat", [], [[]], np.str_("cat"), float("nan")))],
        lambda: random.choice((None, 3, b"cat", object, float("nan"), "", [], {}, "x" * 100_000, ["cat"] * 3, "cat," * 5000)),
    )  # fmt: skip
    made = random.choices(forms, (6, 4, 6, 2, 2, 2, 2, 1, 1, 1, 1, 2))[0]()
    return list(made) if hasattr(made, "__next__") else made  # asked twice


def _word(random: Random) -> str:
    kind = random.randrange(6)
    if kind < 2:
        return random.choice(_SIMPLE)
    if kind == 2:
        return random.choice(_SIMPLE) + random.choice(_SIGNS) + random.choice(_SIMPLE)
    if kind == 3:
        return random.choice(_SEQUENCES)
    if kind == 4:
        return "".join(random.choice(string.printable) for _ in range(random.choice((1, 5, 30, 199, 200, 201, 3000))))
    low, high = random.choice(
        ((0x20, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0x10FFFF))
    )
    return "".join(chr(random.randint(low, high)) for _ in range(random.randint(1, 12)))


def _threshold(random: Random, words: Any) -> Any:
    values = (
        0,
        1,
        0.5,
        -0.0,
        -1,
        1.0000001,
        2,
        float("nan"),
        float("inf"),
        None,
        "0.5",
        True,
        np.float16(0.3),
        10**400,
        [],
        "default",
        b"",
    )
    if random.random() < 0.5:
        return random.choice(values)
    names = [*words] if isinstance(words, (list, tuple)) else ["cat", words]
    return {name: random.choice(values) for name in names if isinstance(name, str)} | {
        random.choice(("dog", "", 3)): 0.5
    }


def _templates(random: Random) -> Any:
    made = ("a photo of a {category}.", "{category}", "{category} {category}", "no place", "{}", "{category!r}", "{category:>99}", "{x}",
            "{{category}}", "", "\0{category}", "{category" + "x" * 5000, "x" * 100_000 + "{category}", None, 3, b"{category}")  # fmt: skip
    return random.choice((
        [random.choice(made) for _ in range(random.randint(0, 3))], random.choice(made), ["{category}"] * 3000, {}, 7,
    ))  # fmt: skip
