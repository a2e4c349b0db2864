"""What is declared about a checkpoint: `reward.json` beside it, a preset, or a setting. Knows no models.

    {"preset": "shieldgemma",
     "head": {"positive": ["No"], "negative": ["Yes"]} | {"token": 0} | "v_head" | {"tensors": ["score.0", "score.2"]},
     "position": "last" | "last_non_pad" | "all" | {"at": "<extra_0>", "reduce": "min"} | {"before": 12902} | {"index": -1}
                 | {"before": "+", "after": "tokenizer:generation_prompt"} | {"at": "\n", "in_response": true},
     "map": {"log_odds": [1, 0], "sign": -1, "shift": 0.5, "scale": 2, "normalize": true},
     "text": {"template": "file.jinja", "template_kwargs": {}, "system": "", "add_bos": true, "append": [271],
              "steps": {"separator": "\n", "mark": "\n"}}}

Every part is optional. What is not declared is detected in the files, or is as in a plain classifier.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, model_validator
from pydantic_core import from_json

from app.engine.head_names import ActivationName, Reduction
from app.errors import ModelRefusedError

DECLARATION_NAME = "reward.json"
PRESETS = files("app.checkpoints") / "presets"

Token = Annotated[int, Field(ge=0, strict=True)] | Annotated[str, Field(min_length=1)]
"""A token id; or its text, which must be one token; or `config:KEY`, an id that config.json holds."""


def as_tuple(value: object) -> object:
    return (value,) if isinstance(value, int | str) else value


Tokens = Annotated[tuple[Token, ...], BeforeValidator(as_tuple)]
Outputs = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
OutputSet = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), BeforeValidator(as_tuple)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class HeadPart(Part):
    """Exactly one of: tensors of the files, one token's logit, or two sets of tokens."""

    tensors: str | tuple[str, ...] | None = None
    activation: ActivationName | None = None
    token: Token | None = None
    positive: Tokens = ()
    negative: Tokens = ()

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        if self.tensors is not None and not all(self.tensors or [""]):
            raise ValueError("name the tensors of the head")
        kinds = [self.tensors is not None, self.token is not None, bool(self.positive or self.negative)]
        if sum(kinds) != 1:
            raise ValueError("give exactly one of tensors, token, or positive and negative")
        if bool(self.positive) != bool(self.negative):
            raise ValueError("positive and negative go together")
        if shared := set(self.positive) & set(self.negative):
            raise ValueError(f"positive and negative share {min(map(str, shared))!r}")
        return self


class PositionPart(Part):
    """Exactly one of: a kind, tokens, or indices."""

    kind: Literal["last", "last_non_pad", "all"] | None = None
    at: Tokens = ()
    before: Tokens = ()
    before_first: Tokens = ()
    index: Outputs = ()
    after: Tokens = ()
    in_response: StrictBool = False
    reduce: Reduction = "last"

    @model_validator(mode="after")
    def one_kind(self) -> Self:
        if sum(map(bool, (self.kind, self.at, self.before, self.before_first, self.index))) != 1:
            raise ValueError("give exactly one of last, last_non_pad, all, at, before, before_first, index")
        if (self.after or self.in_response) and not (self.at or self.before):
            raise ValueError("after and in_response go with at or before")
        return self


class MapPart(Part):
    divisor: float | None = Field(default=None, gt=0)
    softcap: float | None = Field(default=None, gt=0)
    output: int | None = Field(default=None, ge=0)
    log_odds: tuple[OutputSet, OutputSet] | None = None
    softmax: int | None = Field(default=None, ge=0)
    weights: tuple[float, ...] | None = None
    sigmoid: bool | None = None
    shift: float | None = None
    scale: float | None = Field(default=None, gt=0)
    sign: Literal[1, -1] | None = None
    normalize: bool | None = None

    @property
    def chooses(self) -> bool:
        """Whether it declares which of several outputs is the score, or how they are combined."""
        return any(each is not None for each in (self.output, self.log_odds, self.softmax, self.weights))

    @model_validator(mode="after")
    def one_choice(self) -> Self:
        if sum(each is not None for each in (self.output, self.log_odds, self.softmax, self.weights)) > 1:
            raise ValueError("give at most one of output, log_odds, softmax, weights")
        return self


class StepsPart(Part):
    """How a response becomes steps: see `StepRule`."""

    separator: Annotated[str, Field(min_length=1)]
    mark: Annotated[Tokens, Field(min_length=1)]


class TextPart(Part):
    template: str | None = None
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    system: str | None = None
    add_bos: StrictBool | None = None
    add_eos: StrictBool | None = None
    append: Tokens = ()
    append_unless_present: StrictBool = False
    generation_prompt: StrictBool = False
    pair_encoding: StrictBool | None = None
    steps: StepsPart | None = None


class Declaration(Part):
    """What is not given is None; within a part, it is not in `model_fields_set`."""

    about: str = ""
    preset: str | None = None
    head: Annotated[
        HeadPart | None, BeforeValidator(lambda v: {"tensors": v} if isinstance(v, str | list | tuple) else v)
    ] = None
    position: Annotated[PositionPart | None, BeforeValidator(lambda v: {"kind": v} if isinstance(v, str) else v)] = None
    map: MapPart | None = None
    text: TextPart | None = None


class Declared:
    """Several declarations as one, in which later ones override earlier ones, and the source of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.replaces_template = False
        """Whether the template replaces the tokenizer's own. A family's template is only for a tokenizer that has none."""
        self.about = ""
        """The declaration's text about the checkpoint, for people. A preset's text is about the preset, so it is left out."""

    def add(self, declaration: Declaration, origin: str, *, is_declared: bool = True) -> None:
        """A head or a position replaces the earlier one. In a map or a text part, only the given keys are replaced."""
        self.replaces_template |= is_declared and declaration.text is not None and declaration.text.template is not None
        if declaration.about and not origin.startswith("preset "):
            self.about = declaration.about
        for name in ("head", "position", "map", "text"):
            part = getattr(declaration, name)
            if part is None:
                continue
            before = self.parts.get(name)
            if before is not None and name in {"map", "text"}:
                given = {key: getattr(part, key) for key in part.model_fields_set}
                part = before.model_copy(update=given)
                self.origin[name] = f"{self.origin[name]}, {origin}"
            else:
                self.origin[name] = origin
            self.parts[name] = part

    @property
    def head(self) -> HeadPart | None:
        return self.parts.get("head")

    @property
    def position(self) -> PositionPart | None:
        return self.parts.get("position")

    @property
    def map(self) -> MapPart:
        return self.parts.get("map") or MapPart()

    @property
    def text(self) -> TextPart:
        return self.parts.get("text") or TextPart()


def read_declarations(
    source: str, beside: Path | None, setting: str | None, text: str | None = None
) -> list[tuple[Declaration, str]]:
    """The declarations of `reward.json`, of the setting and of the text setting, each after its preset. Later ones override
    earlier ones.

    Raises ModelRefusedError, in one line, if one cannot be read.
    """
    found: list[tuple[Declaration, str]] = []
    if beside is not None:
        found += with_preset(source, parse(source, text_in(source, beside), beside.name), beside.name)
    if setting:
        found += from_setting(source, setting)
    if text:
        found.append((from_text(source, text), "the text setting"))
    return found


def from_text(source: str, text: str) -> Declaration:
    """`text` is a `text` part as JSON, or only its template."""
    if text.lstrip().startswith("{") and not text.lstrip().startswith(("{{", "{%")):
        return parse(source, f'{{"text": {text}}}', "the text setting")
    return Declaration(text=TextPart(template=text))


def from_setting(source: str, setting: str) -> list[tuple[Declaration, str]]:
    """`setting` is JSON, the path of a file, or the name of a preset."""
    if setting.lstrip().startswith("{"):
        return with_preset(source, parse(source, setting, "the setting"), "the setting")
    if setting in preset_names():
        return [(preset(source, setting), f"preset {setting}")]
    file = Path(setting)
    if not file.is_file():
        raise ModelRefusedError(
            f"{source}: no declaration {setting!r}; give a JSON file, JSON itself, or a preset: {', '.join(preset_names())}"
        )
    return with_preset(source, parse(source, text_in(source, file), str(file)), str(file))


def text_in(source: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelRefusedError(
            f"{source}: {file.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def with_preset(source: str, declaration: Declaration, origin: str) -> list[tuple[Declaration, str]]:
    named = declaration.preset
    first = [(preset(source, named), f"preset {named}")] if named is not None else []
    return [*first, (declaration, origin)]


def preset_names() -> list[str]:
    if not PRESETS.is_dir():
        return []
    return sorted(each.name.removesuffix(".json") for each in PRESETS.iterdir() if each.name.endswith(".json"))


def preset(source: str, name: str) -> Declaration:
    if name not in preset_names():
        raise ModelRefusedError(f"{source}: no preset {name!r}; there are {', '.join(preset_names())}")
    return parse(source, (PRESETS / f"{name}.json").read_text(encoding="utf-8"), f"preset {name}")


def parse(source: str, text: str, origin: str) -> Declaration:
    try:
        content = from_json(text)
    except ValueError as error:
        raise ModelRefusedError(f"{source}: {origin} is not valid JSON ({error}); correct it") from error
    try:
        return Declaration.model_validate(content)
    except ValidationError as error:
        raise ModelRefusedError(f"{source}: {origin} {first_error(error)}; docs/models.md lists the keys") from error


def first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "as a whole"
    if first["type"] == "extra_forbidden":
        return f"has an unknown key {place}"
    return f"has {place} {json.dumps(first['input'], default=str)[:80]}: {first['msg'].removeprefix('Value error, ')}"


def describe(parts: Mapping[str, Any]) -> str:
    """A part as the JSON that would declare it."""
    return json.dumps(parts, default=str)
