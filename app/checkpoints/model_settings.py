"""The settings of each model: its name, checkpoint, device, head and text rules. Reads no file."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

ROLES = ("safety", "helpfulness")
"""The two models of Llama 2, between which `llama2` selects."""
LLAMA2 = "llama2"
"""The name by which requests choose the selection between the two, instead of a model."""
MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
EXAMPLE = '{"maths": "models/maths"}'


def json_text(value: object) -> object:
    """An object as JSON text, so that a declaration in REWARD_MODELS can be an object or a string."""
    return json.dumps(value) if isinstance(value, dict) else value


Declaration = Annotated[str | None, Field(min_length=1), BeforeValidator(json_text)]


class ModelSettings(BaseModel):
    """One model, as an object in REWARD_MODELS describes it; the fields mean what REWARD_SAFETY_MODEL, ..._DEVICE,
    ..._HEAD and ..._TEXT mean for the safety model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str = Field(min_length=1)
    device: str = Field(default="auto", min_length=1)
    head: Declaration = None
    text: Declaration = None


def read_models(given: object) -> dict[str, ModelSettings]:
    """REWARD_MODELS as models by name, from JSON or from an object. Raises ValueError in one line."""
    if isinstance(given, str):
        try:
            given = json.loads(given, object_pairs_hook=unique_keys)
        except json.JSONDecodeError as error:
            raise ValueError(f"this is not JSON ({error}); write an object such as {EXAMPLE}") from None
        except RecursionError:
            raise ValueError(f"this is nested too deeply; write an object such as {EXAMPLE}") from None
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"this names no model; write an object such as {EXAMPLE}")
    return {check_name(name): model_settings(name, value) for name, value in given.items()}


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} occurs more than once; keep one of them")
    return dict(pairs)


def is_model_name(name: object) -> bool:
    """Whether it is a valid name for a model."""
    return isinstance(name, str) and MODEL_NAME.fullmatch(name) is not None and name != LLAMA2


def in_words(name: object) -> str:
    """Any value as a name for messages: on one line, and shortened."""
    return " ".join(str(name).split())[:80] or "(blank)"


def check_name(name: object) -> str:
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name):
        raise ValueError(
            f"the name {name!r:.60} is invalid; use up to 32 lower-case letters, digits and _, with a letter first"
        )
    if name == LLAMA2:
        raise ValueError(f"the name {name!r} stands for the selection between two models; choose another")
    return name


def model_settings(name: str, value: object) -> ModelSettings:
    if isinstance(value, ModelSettings):
        return value
    if isinstance(value, str):
        value = {"source": value}
    try:
        return ModelSettings.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([name, *map(str, first["loc"])])
        fields = ", ".join(ModelSettings.model_fields)
        problem = {
            "model_type": "it is neither a string nor an object",
            "extra_forbidden": "there is no such field",
        }.get(first["type"], f"{first['msg'][0].lower()}{first['msg'][1:]}")
        raise ValueError(
            f"{place} is wrong: {problem}; give a checkpoint's directory, `hf:` and a hub "
            f"id, or an object with {fields}"
        ) from None
