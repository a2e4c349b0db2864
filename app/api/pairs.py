"""Converts a preference pair of the API to two inputs of the engine, and to its margin. /compare and training share it."""

from app.api.compare_schemas import Pair
from app.api.schemas import Message
from app.engine.inputs import Input, Messages, PromptResponse
from app.rewards.margins import MARGINS, MarginScheme


def pair_to_inputs(pair: Pair, item: int, prefix: str) -> tuple[Input, Input]:
    """The chosen and the rejected conversation. Errors name them `{prefix}chosen` and `{prefix}rejected`."""
    locations = f"{prefix}chosen", f"{prefix}rejected"
    if pair.chosen_messages is not None and pair.rejected_messages is not None:
        forms = engine_messages(pair.chosen_messages), engine_messages(pair.rejected_messages)
        return Input(forms[0], item, f"{locations[0]}_messages"), Input(forms[1], item, f"{locations[1]}_messages")
    prompt = pair.prompt or ""
    return (
        Input(PromptResponse(prompt, pair.chosen or ""), item, locations[0]),
        Input(PromptResponse(prompt, pair.rejected or ""), item, locations[1]),
    )


def engine_messages(messages: list[Message]) -> Messages:
    return Messages(tuple(message.turn() for message in messages))


def margin_of(pair: Pair, scheme: MarginScheme) -> float:
    """The pair's own margin, or its rating's in the scheme, in score units; 0 without either."""
    if pair.rating is not None:
        return MARGINS[scheme][pair.rating]
    return pair.margin or 0.0
