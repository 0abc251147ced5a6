"""Prompt templates: sentences with a place for the word (paper 6.2)."""

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import islice

from ..argument_checks import shown
from ..errors import TemplatesInvalid

PLACE = "{category}"
MOST = 1000

PAPER_TEMPLATES: tuple[str, ...] = (
    "a bad photo of the {category}.",
    "a photo of the large {category}.",
    "a photo of the small {category}.",
    "a cropped photo of a {category}.",
    "This is a photo of a {category}",
    "This is a photo of a small {category}",
    "This is a photo of a medium {category}",
    "This is a photo of a large {category}",
    "This is a masked photo of a {category}",
    "This is a masked photo of a small {category}",
    "This is a masked photo of a medium {category}",
    "This is a masked photo of a large {category}",
    "This is a cropped photo of a {category}",
    "This is a cropped photo of a small {category}",
    "This is a cropped photo of a medium {category}",
    "This is a cropped photo of a large {category}",
    "A photo of a {category} in the scene",
    "a bad photo of the {category} in the scene",
    "a photo of the large {category} in the scene",
    "a photo of the small {category} in the scene",
    "a cropped photo of a {category} in the scene",
    "a photo of a masked {category} in the scene",
    "There is a {category} in the scene",
    "There is the {category} in the scene",
    "This is a {category} in the scene",
    "This is the {category} in the scene",
    "This is one {category} in the scene",
    "There is a masked {category} in the scene",
    "There is the masked {category} in the scene",
    "This is a masked {category} in the scene",
    "This is the masked {category} in the scene",
    "This is one masked {category} in the scene",
)
"""The 32 templates of the paper, in its order and spelling."""


def check_templates(templates: Iterable[str]) -> tuple[str, ...]:
    """The templates as a tuple, each holding `{category}` exactly once. Raises TemplatesInvalid."""
    if isinstance(templates, str):
        templates = (templates,)
    try:
        if isinstance(templates, (bytes, bytearray, memoryview, set, frozenset, Mapping)):
            raise TypeError
        checked = tuple(islice(templates, MOST + 1))
    except TypeError:
        raise TemplatesInvalid(
            f"prompt templates were given as {type(templates).__name__}",
            f"give a list, such as ['a photo of a {PLACE}.']",
        ) from None
    if not checked:
        raise TemplatesInvalid("no prompt templates were given", f"give at least one, such as 'a photo of a {PLACE}.'")
    for template in checked:
        if not isinstance(template, str) or template.count(PLACE) != 1:
            raise TemplatesInvalid(
                f"the prompt template {shown(template)} must hold {PLACE} exactly once",
                f"put it where the word stands, such as 'a photo of a {PLACE}.'",
            )
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in template):
            raise TemplatesInvalid(f"the prompt template {shown(template)} holds unprintable characters", "remove them")
    if len(checked) > MOST:
        raise TemplatesInvalid(
            f"more than {MOST} prompt templates were given", "give fewer: every one costs a pass per word"
        )
    return checked


def fill(templates: Iterable[str], word: str) -> list[str]:
    """One prompt per template."""
    return [template.replace(PLACE, word) for template in templates]
