"""Builds the head and the text rules from what was detected and declared, with the source of each part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from app.checkpoints.about import about_of
from app.checkpoints.checks import check_finite
from app.checkpoints.declaration import Declared, HeadPart, MapPart, PositionPart
from app.checkpoints.files import shape_of
from app.checkpoints.heads import check_all_explained, check_chosen, head_layers
from app.checkpoints.layout import Layout, in_words, layers_named, tensors_of
from app.checkpoints.logits import LogitRule, LogitsError, measure_logits
from app.checkpoints.text_parts import text_rules_of
from app.checkpoints.vocabulary import Vocabulary
from app.engine.head import Head, Layer, Position, ScoreMap
from app.engine.text_rules import TextRules
from app.errors import ModelRefusedError

if TYPE_CHECKING:
    from app.engine.head_names import PositionKind

NO_MAP: Mapping[str, Any] = {}


def position_of(part: PositionPart | None, vocabulary: Vocabulary) -> Position:
    """The declared position with token ids; by default the last token, or the last non-pad one if there is a pad token."""
    if part is None:
        if not vocabulary.has("config:pad_token_id"):
            return Position("last")
        return Position("last_non_pad", tuple(vocabulary.resolve("config:pad_token_id")))
    if part.kind == "last_non_pad":
        return position_of(None, vocabulary)
    if part.kind is not None:
        return Position(part.kind)
    if part.index:
        return Position("index", indices=tuple(sorted(part.index)))
    kinds: tuple[PositionKind, ...] = ("at", "before", "before_first")
    kind = next(kind for kind in kinds if getattr(part, kind))
    tokens = getattr(part, kind)
    names = " or ".join(repr(each) if isinstance(each, str) else str(each) for each in tokens)
    return Position(
        kind,
        vocabulary.ids(tokens),
        name=f"token {names}{position_in_words(part)}",
        after=vocabulary.continuation(part.after),
        in_response=part.in_response,
    )


def position_in_words(part: PositionPart) -> str:
    after = f" after {', '.join(map(repr, part.after))}" if part.after else ""
    return f"{after} in its response" if part.in_response else after


def map_of(source: str, part: MapPart, config: Mapping[str, Any], logits: LogitRule | None = None) -> ScoreMap:
    """The score map of `part`. For a head over `logits`, the language model's own divisor and soft-cap are the defaults."""
    values = {key: value for key, value in part if value is not None and key != "normalize"}
    if part.normalize:
        values |= normalization(source, config)
    elif part.normalize is False:
        values |= {"shift": 0.0, "scale": 1.0}
    if logits is not None:
        values = {"divisor": logits.divisor, "softcap": logits.softcap} | values
    return ScoreMap(**values)


def normalization(source: str, config: Mapping[str, Any]) -> dict[str, float]:
    mean, std = config.get("mean"), config.get("std")
    if not isinstance(mean, int | float) or not isinstance(std, int | float) or std <= 0:
        raise ModelRefusedError(
            f"{source}: map.normalize needs mean and std in config.json, which has {mean} and {std}; "
            "declare shift and scale"
        )
    return {"shift": float(mean), "scale": float(std)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint's texts become token ids, and its states the score; `about` describes each part and its source."""

    head: Head
    text_rules: TextRules
    about: Mapping[str, str]


class RecipeMaker:
    """Makes the recipe for a trunk and its head's tensors. Declarations override the rules of its family."""

    def __init__(
        self,
        source: str,
        declared: Declared,
        layout: Layout,
        vocabulary: Vocabulary,
        *,
        config: PreTrainedConfig,
        hidden_size: int,
        beside: Path | None,
    ) -> None:
        self.source = source
        self.config = config
        self.declared = declared
        self.layout = layout
        self.vocabulary = vocabulary
        self.hidden_size = hidden_size
        self.beside = beside
        self.explained: set[str] = set()

    def make(self) -> Recipe:
        """Raises ModelRefusedError, in one line, for a declaration that contradicts the files."""
        part, text = self.declared.head, self.declared.text
        assert part is not None
        is_logits = part.tensors is None
        position = self.declared.position
        read_at = Position("last") if position is None and is_logits else position_of(position, self.vocabulary)
        if is_logits and "generation_prompt" not in text.model_fields_set:
            text = text.model_copy(
                update={"generation_prompt": True}
            )  # the logits are those of the answer's first token
        replaces = self.declared.replaces_template
        rules = text_rules_of(self.source, text, self.vocabulary, replaces=replaces, beside=self.beside)
        if part.tensors is not None:
            layers, what, score_map = self._layers(), self._in_words(part), NO_MAP
        else:
            layers, what, score_map = self._token_rows(part)
        given = self.declared.map
        if score_map and not given.chooses:
            given = given.model_copy(update=score_map)
        head = Head(
            layers,
            activation=part.activation or "relu",
            position=read_at,
            map=map_of(self.source, given, self.vocabulary.config, self._logits() if is_logits else None),
            reduction=position.reduce if position is not None else "last",
        )
        if part.tensors is not None:
            check_chosen(self.source, self.declared, len(layers[-1].weight))
        check_outputs(self.source, head.map, len(layers[-1].weight))
        check_all_explained(self.source, self.layout.head_shapes, self.explained, self.hidden_size)
        about = about_of(self.declared, head, what)
        return Recipe(head, rules, about | {"map": about["map"] + self._unused_normalization(given)})

    def _unused_normalization(self, given: MapPart) -> str:
        """A note if the config has a mean and a standard deviation that are not applied (OpenRLHF's server applies them)."""
        mean, std = (self.vocabulary.config.get(key) for key in ("mean", "std"))
        if mean is None or std is None or given.normalize or given.shift is not None or given.scale is not None:
            return ""
        return (
            f'; not normalized by mean {mean} and std {std} of config.json, which "map": {{"normalize": true}} would do'
        )

    def _logits(self) -> LogitRule:
        try:
            return measure_logits(self.config, self.hidden_size)
        except LogitsError as error:
            raise ModelRefusedError(
                f"{self.source}: {self.declared.origin['head']} reads logits, but {error}; declare a head of tensors instead"
            ) from error

    def _layers(self) -> tuple[Layer, ...]:
        layers = head_layers(self.source, self.declared, self.layout.head_shapes, self.hidden_size)
        self.explained |= set(tensors_of(layers, self.layout.head_shapes))
        return tuple(self._layer(name) for name in layers)

    def _layer(self, name: str) -> Layer:
        bias = self.layout.head.get(f"{name}.bias")
        layer = Layer(self.layout.head[f"{name}.weight"][...], None if bias is None else bias[...]).double()
        check_finite(self.source, [name] if not is_finite(layer) else [])
        return layer

    def _in_words(self, part: HeadPart) -> str:
        names = [part.tensors] if isinstance(part.tensors, str) else list(part.tensors or ())
        shapes = self.layout.head_shapes
        layers = layers_named(shapes, names[0]) if len(names) == 1 else names
        return in_words({name: shapes[name] for name in tensors_of(layers, shapes)})

    def _token_rows(self, part: HeadPart) -> tuple[tuple[Layer, ...], str, Mapping[str, Any]]:
        """A layer with the declared tokens' rows of the output embedding, its description, and its score map."""
        ids = self.vocabulary.ids
        if part.token is not None:
            rows = ids((part.token,))
            score_map: Mapping[str, Any] = {"output": 0}
        else:
            positive, negative = ids(part.positive), ids(part.negative)
            rows = (*positive, *negative)
            if shared := set(positive) & set(negative):
                raise ModelRefusedError(
                    f"{self.source}: {self.declared.origin['head']} has token {min(shared)} as positive and as negative; take one out"
                )
            score_map = {"log_odds": (tuple(range(len(positive))), tuple(range(len(positive), len(rows))))}
        weight, name = self._output_embedding()
        bias = self.layout.lm_head.get(f"{name}.bias")
        num_rows, width = shape_of(weight)
        if width != self.hidden_size or max(rows) >= num_rows:
            raise ModelRefusedError(
                f"{self.source}: the output embedding {name} is [{num_rows}, {width}], which has no row {max(rows)} over "
                f"states of {self.hidden_size}; declare tokens that it has"
            )
        picked = torch.stack([weight[row : row + 1][0] for row in rows])
        layer = Layer(picked, None if bias is None else bias[...][list(rows)]).double()
        check_finite(self.source, [name] if not is_finite(layer) else [])
        return (layer,), f"rows {list(rows)} of {name} [{num_rows}, {width}]", score_map

    def _output_embedding(self) -> tuple[Any, str]:
        for name, stored in self.layout.lm_head.items():
            if name.endswith(".weight"):
                return stored, name.removesuffix(".weight")
        if not self.vocabulary.config.get("tie_word_embeddings", True):
            raise ModelRefusedError(
                f"{self.source}: {self.declared.origin['head']} reads logits of tokens, and the files have no output embedding "
                "(lm_head.weight); save the whole language model"
            )
        name = self.layout.embedding
        return self.layout.trunk[name], name.removesuffix(".weight")


def is_finite(layer: Layer) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in (layer.weight, layer.bias) if each is not None)


def check_outputs(source: str, score_map: ScoreMap, num_outputs: int) -> None:
    """Raises if the map reads an output that the head does not have, or has too few or too many weights."""
    read = [score_map.output, *(i for ids in score_map.log_odds or () for i in ids)]
    read += [score_map.softmax] if score_map.softmax is not None else []
    if max(read) >= num_outputs:
        raise ModelRefusedError(
            f"{source}: the map reads output {max(read)} of a head with {num_outputs}; declare one of 0 to {num_outputs - 1}"
        )
    if score_map.weights is not None and len(score_map.weights) != num_outputs:
        raise ModelRefusedError(
            f"{source}: map.weights has {len(score_map.weights)} numbers for a head with {num_outputs} outputs; give one each"
        )
