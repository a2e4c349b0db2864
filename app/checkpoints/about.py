"""Describes a recipe, for /info, the log and `reward-service inspect`."""

from dataclasses import fields

from app.checkpoints.declaration import Declared
from app.engine.head import Head, ScoreMap


def about_of(declared: Declared, head: Head, what: str) -> dict[str, str]:
    """A description of each part, with its source. `what` describes the head's tensors."""
    words = head_in_words(head, what)
    plain = {"head": "a plain classifier", "position": "as transformers' classifier", "map": "default"}
    if not what.startswith(("score ", "classifier")):
        plain["position"] = "default"
    if head.map.log_odds is not None:
        plain["map"] = "of the declared tokens"
    parts = {name: f"{word} ({declared.origin.get(name, plain[name])})" for name, word in words.items()}
    if declared.about:
        parts["about"] = declared.about
    return parts | {"text": declared.origin.get("text", "the tokenizer's own rules")}


def head_in_words(head: Head, what: str) -> dict[str, str]:
    position = head.position
    ids = list(position.token_ids)
    where: str = position.kind if head.layers else "its class's own"
    where += f" {position.name} {ids}" if position.name else f" {ids}" if ids else ""
    where += f" {list(position.indices)}" if position.indices else ""
    where += f", directly after {list(position.after)}" if position.after else ""
    where += ", of the response alone" if position.in_response else ""
    where += f", {head.reduction} of several" if position.kind in {"at", "before", "all", "index"} else ""
    return {"head": what, "position": where, "map": map_in_words(head.map)}


def map_in_words(score_map: ScoreMap) -> str:
    default = ScoreMap()
    given = {
        each.name: getattr(score_map, each.name)
        for each in fields(ScoreMap)
        if getattr(score_map, each.name) != getattr(default, each.name)
    }
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "identity"
