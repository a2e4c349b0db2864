"""Loads checkpoints from disk or hub as they will be served, or rejects them. Knows no batches."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.checkpoints.about import about_of
from app.checkpoints.adapters import find_adapter
from app.checkpoints.building import build, head_of, load_trunk, net_of
from app.checkpoints.card import CARD_NAME, tags_of
from app.checkpoints.checks import check_untrained, refusing
from app.checkpoints.declaration import DECLARATION_NAME, Declared, read_declarations
from app.checkpoints.encoder_decoders import position_of_class
from app.checkpoints.files import find_file
from app.checkpoints.max_length import max_length_of
from app.checkpoints.merging import read_merged, runs_own_code
from app.checkpoints.parts import TrunkParts, parts_of, vocabulary_of
from app.checkpoints.placement import place
from app.checkpoints.recipe import Recipe, check_outputs, map_of, position_of
from app.checkpoints.saved import Saved, load_arguments, read_saved
from app.checkpoints.sharing import SharedBases
from app.checkpoints.text_parts import text_rules_of
from app.checkpoints.transformers_checks import check_config, quiet_transformers
from app.checkpoints.weights import (
    hub_commit,
    signatures_of,
    weights_hash,
)
from app.engine.checkpoint import Checkpoint
from app.engine.head import Head, Layer, Position, ScoreMap
from app.engine.head_names import Reduction
from app.engine.text_rules import TextRules
from app.errors import ModelRefusedError

CAUSAL_TOLERANCE = 1e-4
"""The largest relative change of the states before a changed token that counts as rounding error."""


def load_checkpoint(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    may_be_untrained: bool = False,
    declared: str | None = None,
    text: str | None = None,
    bases: SharedBases | None = None,
) -> Checkpoint:
    """Loads a checkpoint from a directory, or from the hub if `source` is `hf:` and a hub id.

    - `device`: a torch device name, `auto` or `split`. `dtype`: a torch dtype name, `auto` or `int8`. The head is always in
      float32 or float64. An adapter is merged into its base.
    - `may_be_untrained`: accept a head that `reward-service init` made.
    - `declared`: JSON, a file or a preset's name; overrides the `reward.json` beside the checkpoint. `text`: a chat template
      or the JSON of text rules; overrides both.
    - `bases`: for adapters that are loaded together, so that those of one base share the tensors that they do not change.

    Raises ModelRefusedError for a checkpoint that cannot be scored exactly as its authors do, or does not fit in memory.
    """
    placement = place(device, dtype)
    with refusing(source), quiet_transformers():
        beside = find_file(name=DECLARATION_NAME, **load_arguments(source))
        declarations = read_declarations(source, beside, declared, text)
        adapter, merged = find_adapter(source, **load_arguments(source)), None
        if adapter is None:
            saved = read_saved(source, trust_remote_code)
            if not may_be_untrained:
                check_untrained(source, saved.files)
        else:
            merged = read_merged(source, adapter, declarations, trust_remote_code, bases or SharedBases())
            saved = merged.saved
        base = merged.base if merged is not None and not placement.split else None
        parts = parts_of(source, saved, declarations, beside)
        if not isinstance(parts, TrunkParts):
            if adapter is None:
                check_config(
                    source,
                    saved.config,
                    runs_own_code=runs_own_code(saved.config, trust_remote_code),
                    chooses_output=parts.map.chooses,
                )
            with torch.device("meta"):
                empty = net_of(saved.config, trust_remote_code)
            rules = classifier_rules(source, empty, saved, parts, beside)
        if merged is not None:
            merged.merge()
        if isinstance(parts, TrunkParts):
            net: PreTrainedModel = load_trunk(source, parts, placement, base)
            recipe, causal = parts.recipe, has_causal_states(net, placement.device)
        else:
            net = build(source, saved, placement, trust_remote_code, base=base)
            recipe, causal = classifier_recipe(net, saved, parts, rules), is_causal(net)
        version = (adapter is None and hub_commit(saved.files[0])) or weights_hash(saved.files)
        if signatures_of(saved.files) != saved.signatures:
            raise ModelRefusedError(f"{source} changed while it was loaded; load it again when it is complete")
    embedding: Any = net.get_input_embeddings()
    max_length, stated_by = max_length_of(net, saved.tokenizer)
    return Checkpoint(
        source=source,
        version=version,
        net=net,
        tokenizer=saved.tokenizer,
        device=placement.device,
        weight_dtype="int8" if placement.int8 else str(net.dtype).removeprefix("torch."),
        max_length=max_length,
        vocab_size=embedding.num_embeddings,
        head=recipe.head,
        is_causal=causal,
        is_classifier=not isinstance(parts, TrunkParts),
        text_rules=recipe.text_rules,
        about={**recipe.about, "max_length": f"{max_length} tokens ({stated_by})"},
        tags=tags_of(find_file(name=CARD_NAME, **load_arguments(source))),
    )


def is_causal(net: PreTrainedModel) -> bool:
    return head_of(net)[0] == "score"


def has_causal_states(trunk: PreTrainedModel, device: torch.device) -> bool:
    """Whether a token's state depends only on the tokens up to it, tested by changing the last token of a short text."""
    first = torch.arange(1, 9, device=device)[None]
    second = first.clone()
    second[0, -1] = 0
    with torch.inference_mode():
        states, others = (trunk(input_ids=ids).last_hidden_state[:, :-1].float() for ids in (first, second))
    return bool((states - others).norm() <= CAUSAL_TOLERANCE * states.norm())


@dataclass(frozen=True, slots=True)
class ClassifierRules:
    """The declarations about a plain classifier, with token names resolved to ids."""

    position: Position | None
    """None: the position that its class reads."""
    map: ScoreMap
    reduction: Reduction
    text_rules: TextRules


def classifier_rules(
    source: str, empty: PreTrainedModel, saved: Saved, declared: Declared, beside: Path | None
) -> ClassifierRules:
    """The rules for `empty`, which may be on `meta`. Raises ModelRefusedError for a declaration that contradicts it."""
    part = declared.position
    embedding: Any = empty.get_input_embeddings()
    vocabulary = vocabulary_of(source, saved, embedding.num_embeddings)
    if part is not None and not is_causal(empty):
        raise ModelRefusedError(
            f"{source}: {declared.origin['position']} declares a position, and {type(empty).__name__} reads its own; leave it out"
        )
    rules = ClassifierRules(
        None if part is None else position_of(part, vocabulary),
        map_of(source, declared.map, vocabulary.config),
        "last" if part is None else part.reduce,
        text_rules_of(source, declared.text, vocabulary, replaces=True, beside=beside.parent if beside else None),
    )
    check_outputs(source, rules.map, head_of(empty)[1].out_features)
    return rules


def classifier_recipe(net: PreTrainedModel, saved: Saved, declared: Declared, rules: ClassifierRules) -> Recipe:
    head = replace(plain_head(net, saved.tokenizer), map=rules.map)
    if rules.position is not None:
        head = replace(head, position=rules.position, reduction=rules.reduction)
    name, linear = head_of(net)
    return Recipe(head, rules.text_rules, about_of(declared, head, f"{name} {list(linear.weight.shape)}"))


def plain_head(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Head:
    """The head of a sequence classifier: for a decoder its last linear layer, at the position that transformers reads."""
    if not is_causal(net):
        return Head(position=position_of_class(net, tokenizer))
    _, linear = head_of(net)
    pad = net.config.get_text_config().pad_token_id
    position = Position("last") if pad is None else Position("last_non_pad", (pad,))
    return Head((Layer(linear.weight, linear.bias).double(),), position=position)
