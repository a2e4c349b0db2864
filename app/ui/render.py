"""Renders templates to HTML. They escape their arguments, so a user's text cannot become markup."""

import math
import zlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from app.checkpoints.model_settings import ROLES

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
LARGE, SMALL = 1e4, 1e-2


def number(value: float, digits: int = 3) -> str:
    """A number for reading: three decimals; fewer if it is large, two significant digits if it is tiny."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if abs(value) >= LARGE:
        text = f"{value:.3g}"
    elif 0 < abs(value) < SMALL:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, plus included."""
    text = number(value, digits)
    return text if text.startswith(MINUS) or value == 0 else f"+{text}"


def exact(value: float, digits: int = 3) -> Markup:
    """A rounded number, with all its digits as a tooltip and as a machine-readable value."""
    return Markup('<data value="{0}" title="{0}">{1}</data>').format(repr(value), number(value, digits))


def fixed(value: float, digits: int) -> str:
    """A number with this many decimals, for columns; a plain 0 if it rounds to zero."""
    text = f"{value:.{digits}f}"
    return "0" if float(text) == 0 else text.replace("-", MINUS)


def count(value: float) -> str:
    """A whole number with its digits in groups of three."""
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """A time in a readable unit."""
    return f"{number(seconds, 2)} s" if seconds >= 1 else f"{number(1000 * seconds, 1)} ms"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    suffix = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


NUM_FURTHER_COLOURS = 4


def kind(model: str) -> str:
    """The suffix of a model's CSS class, which gives it a colour of its own."""
    return model if model in ROLES else f"further-{zlib.crc32(model.encode()) % NUM_FURTHER_COLOURS}"


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}
    made.filters |= {
        "number": number,
        "signed": signed,
        "exact": exact,
        "fixed": fixed,
        "count": count,
        "kind": kind,
        "ordinal": ordinal,
        "duration": duration,
    }
    return made


TEMPLATES = environment()


def render(template: str, **values: Any) -> str:
    return TEMPLATES.get_template(template).render(values)
