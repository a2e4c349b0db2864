"""Each server's request body for one text, and the parser of its response; pure functions of bytes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

JSON: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One text's score; None if the server computes none. `num_computed_tokens` is None if the response has no such figure."""

    score: float | None
    num_computed_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """Turns a text into a JSON request body, and a JSON response body into a `Reply`."""

    path: str
    ready_path: str
    encode: Callable[[str], JSON]
    decode: Callable[[JSON], Reply]

    def request(self, text: str) -> bytes:
        return json.dumps(self.encode(text)).encode()

    def reply(self, body: bytes) -> Reply:
        return self.decode(json.loads(body))


def _encode_service(text: str) -> JSON:
    return {"items": [{"text": text}]}


def _decode_service(answer: JSON) -> Reply:
    score = answer["results"][0]["scores"]["helpfulness"]["score"]
    return Reply(float(score), int(answer["usage"]["num_computed_tokens"]))


def _encode_vllm(text: str) -> JSON:
    return {"model": "reward", "input": text, "use_activation": False}


def _decode_vllm(answer: JSON) -> Reply:
    return Reply(float(answer["data"][-1]["probs"][-1]))


def _encode_openrlhf(text: str) -> JSON:
    return {"query": [text], "prompts": [""]}


def _decode_openrlhf(answer: JSON) -> Reply:
    return Reply(float(answer["rewards"][0]))


def _decode_echo(_answer: JSON) -> Reply:
    return Reply(None)


SERVICE = Dialect("/score", "/ready", _encode_service, _decode_service)
VLLM = Dialect("/classify", "/health", _encode_vllm, _decode_vllm)
OPENRLHF = Dialect("/get_reward", "/ready", _encode_openrlhf, _decode_openrlhf)
ECHO = Dialect("/score", "/ready", _encode_service, _decode_echo)
