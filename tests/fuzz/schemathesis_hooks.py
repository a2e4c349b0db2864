"""Read by schemathesis (SCHEMATHESIS_HOOKS): which refusals of schema-valid input are right, and why.

`positive_data_acceptance` alone would call every rule a fault that a JSON schema cannot state. This check is the same one,
except for refusals whose message names one of those rules.
"""

import json
import re
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

UNSTATED = {
    "one of several forms": r"send exactly one of|send both prompt and response|query is missing|send one of (text and input_ids|them)|come together|come in place of|"
    r"send prompt, chosen and rejected|send both|has no (safety|helpfulness)_score|both rating and margin|no logprobs|send either inputs",
    "the last turn": r"it must be the assistant's|has no content; send a text, or tool_calls",
    "lists of one length": r"lists of different lengths|send one per (query|input)|Input lengths must be",
    "options of messages alone": r"is for messages, and the request has none|Cannot set both",
    "what the checkpoint's template renders": r"does not render|unexpected chat template kwargs",
    "the checkpoint's limit": r"greater than max_model_len",
    "a model that is loaded": r"needs the .*model, which is not loaded",
    "statistics of one batch or by group": r"^whiten\.stats\.\S+ is missing",
    "models that differ": r"tokenize this differently",
    "options that need each other": r"needs it for every item|a map by (group in mode group|model)|drop (it|them), or choose|"
    r"has no group|whitening needs 2|does not take; drop it|needs both scores|has on \w+ but no model|has no (weights|lambda|safety_threshold)",
    "a threshold on a probability": r"send a probability above 0 and below 1",
    "keys that differ by their type": r"cannot tell these groups apart",
    "a number's relation to another": r"is empty; send \[low, high\]|counts no token|a counted log-probability is|overflow",
    "what a tokenizer makes of it": r"has no tokens|the limit is \d+|the vocabulary has ids|chat template",
    "a number that JSON Schema takes for an integer": r"is -?\d+(\.0|e\d+): input should be a valid integer",
    "what the checkpoint's head reads": r"needs a process reward model",
    "a float's range": r"out of range|is too large|finite",
    "a text that no UTF-8 can hold": r"surrogate",
}
"""Rules by name, and how the service words them."""


def said_by(body: Any) -> str:
    """The message, in any dialect's error."""
    error = body.get("error", body.get("detail", "")) if isinstance(body, dict) else ""
    return str(error.get("message", "") if isinstance(error, dict) else error)


def breaks_an_unstated_rule(response: Any) -> bool:
    try:
        message = said_by(json.loads(response.content))
    except ValueError:
        return False
    return any(re.search(pattern, message) for pattern in UNSTATED.values())


@schemathesis.check  # type: ignore[untyped-decorator] # checked with and without the package
def valid_data_is_accepted_or_breaks_an_unstated_rule(ctx: Any, response: Any, case: Any) -> bool | None:
    if 400 <= response.status_code < 500 and breaks_an_unstated_rule(response):
        return None
    outcome: bool | None = positive_data_acceptance(ctx, response, case)
    return outcome
