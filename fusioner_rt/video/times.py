"""Times of a video: as a command line says them, and as FFmpeg counts them."""

import re
from fractions import Fraction
from numbers import Rational, Real
from typing import Any

from ..argument_checks import named
from ..errors import UsageError

_LONGEST = 1_000_000_000
_TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,2}):)?(\d{1,9}(?:\.\d{1,9})?)")


def seconds(given: Any, name: str) -> Fraction | None:
    """A number of seconds, or "90", "1:30", "0:01:30.5"; None stays None. name: of the argument. Raises UsageError."""
    if given is None:
        return None
    if isinstance(given, str):
        found = _TIME.fullmatch(given.strip())
        if found and not (found[2] and Fraction(found[3]) >= 60):
            hours, minutes, rest = (Fraction(part or 0) for part in found.groups())
            return hours * 3600 + minutes * 60 + rest
    elif (number := exact(given)) is not None and number >= 0:
        return number.limit_denominator(10**9)
    raise UsageError(named(name, given), "give seconds, 90.5, or minutes and hours with them, 1:30 or 1:02:03")


def exact(given: Any) -> Fraction | None:
    """A real number of seconds, NumPy's too; None of anything else, and of what no video is as long as."""
    is_real = isinstance(given, Real) and not isinstance(given, bool)
    number: Any = given
    if not is_real or not abs(number) < _LONGEST:  # as nan is not
        return None
    return Fraction(number) if isinstance(number, Rational) else Fraction(float(number))


def fraction(rational: object) -> Fraction | None:
    """A rational number of PyAV, of any of its versions; None where it is not known."""
    numerator, denominator = getattr(rational, "numerator", 0), getattr(rational, "denominator", 0)
    return Fraction(numerator, denominator) if numerator and denominator else None
