"""Rewords pydantic's errors about a body or a line: where the error is, the value, what is wrong."""

from pydantic_core import ErrorDetails


def first_error(errors: list[ErrorDetails]) -> tuple[ErrorDetails, int]:
    """The error to report, and the number of other locations with one. Unknown fields go first: they cause other errors."""
    first, *others = sorted(errors, key=lambda each: each["type"] != "extra_forbidden")
    return first, len({location_of(other) for other in others} - {location_of(first)})


def location_of(error: ErrorDetails) -> str:
    """The location in the body, such as `items[3].prompt`, without pydantic's own parts for unions and constraints."""
    shown = ""
    location = error["loc"]
    for i, part in enumerate(location):
        is_unknown_field = error["type"] == "extra_forbidden" and i == len(location) - 1
        if isinstance(part, int):
            shown += f"[{part}]"
        elif is_unknown_field or is_own_name(part):
            shown += f".{part}" if shown else part
    return shown


def is_own_name(part: str) -> bool:
    return part.isidentifier() and not part[0].isupper() and part not in {"bool", "float", "int", "str"}


def reason(error: ErrorDetails) -> str:
    match error["type"]:
        case "wrong_input":
            return error["msg"]
        case "extra_forbidden":
            return "is unknown; check its spelling against /docs"
        case "missing":
            return "is missing"
        case _:
            value = repr(error["input"])
            shown = value if len(value) <= 40 else f"{value[:40]}..."  # noqa: PLR2004 - enough to recognise it
            return f"is {shown}: {error['msg'][0].lower()}{error['msg'][1:]}"
