"""Prompt templates: sentences with a place for the word (paper 6.2)."""

from collections.abc import Iterable

from ..errors import TemplatesInvalid

PLACE = "{category}"

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
    checked = tuple(templates)
    if not checked:
        raise TemplatesInvalid("no prompt templates were given", f"give at least one, such as 'a photo of a {PLACE}.'")
    for template in checked:
        if not isinstance(template, str) or template.count(PLACE) != 1:
            raise TemplatesInvalid(
                f"the prompt template {template!r} must hold {PLACE} exactly once, such as 'a photo of a {PLACE}.'"
            )
    return checked


def fill(templates: Iterable[str], word: str) -> list[str]:
    """One prompt per template."""
    return [template.replace(PLACE, word) for template in templates]
