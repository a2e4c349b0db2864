"""The benchmark texts: seven shapes of trainers' traffic, generated from a seed and a word list.

Uses no tokenizer: the caller passes the words (`tokenizer_words` selects those that are one token each), so the number of words is
the number of tokens except for the chat markup. Every seed gives different words with the same lengths, so repeats are comparable
and a server's cache is of no use to the next repeat.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

USER_START = "<|im_start|>user\n"
ASSISTANT_START = "<|im_end|>\n<|im_start|>assistant\n"
TURN_END = "<|im_end|>"
NUM_MARKUP_TOKENS = 10

_SPACE_MARK = "\u0120"
_WORD = re.compile(f"{_SPACE_MARK}[a-z]{{2,12}}")


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts, one per request; the checkpoint that scores them (`deep` or `tiny`); requests in flight in the closed loop."""

    name: str
    checkpoint: str
    concurrency: int
    texts: tuple[str, ...]


def build_workload(name: str, words: Sequence[str], seed: int) -> Workload:
    """Return the workload `name` (a key of `WORKLOADS`) for this seed; the same arguments give the same texts."""
    source = random.Random(f"{name}:{seed}")  # noqa: S311 (texts, not secrets)
    return WORKLOADS[name](words, source)


def tokenizer_words(vocabulary: Mapping[str, int]) -> list[str]:
    """Plain lower-case words that a byte-level BPE has as one token (after a space), by token id."""
    tokens = sorted((token_id, token) for token, token_id in vocabulary.items() if _WORD.fullmatch(token))
    return [token.removeprefix(_SPACE_MARK) for _, token in tokens]


def _distinct(words: Sequence[str], source: random.Random) -> Workload:
    """96 conversations of 20 to 470 tokens, evenly spread, that share only the markup."""
    lengths = _spread(96, 20, 470)
    source.shuffle(lengths)
    texts = [_conversation(*_split(words, source, length)) for length in lengths]
    return Workload("distinct", "deep", 96, tuple(texts))


def _groups(words: Sequence[str], source: random.Random) -> Workload:
    """6 prompts of about 240 tokens with 16 responses of 20 to 200 tokens each, as best-of-n and GRPO send them."""
    texts: list[str] = []
    for num_prompt_words in _spread(6, 140, 340):
        prompt = _phrase(words, source, num_prompt_words)
        lengths = _spread(16, 20, 200)
        source.shuffle(lengths)
        texts += [_conversation(prompt, _phrase(words, source, length)) for length in lengths]
    return Workload("groups", "deep", 96, tuple(texts))


def _pairs(words: Sequence[str], source: random.Random) -> Workload:
    """48 pairs: prompts of 40 to 300 tokens, two responses of 10 to 170 tokens to each."""
    texts: list[str] = []
    prompt_lengths = _spread(48, 40, 300)
    response_lengths = _spread(96, 10, 170)
    source.shuffle(prompt_lengths)
    source.shuffle(response_lengths)
    for index, num_prompt_words in enumerate(prompt_lengths):
        prompt = _phrase(words, source, num_prompt_words)
        lengths = response_lengths[2 * index : 2 * index + 2]
        texts += [_conversation(prompt, _phrase(words, source, length)) for length in lengths]
    return Workload("pairs", "deep", 96, tuple(texts))


def _single_short(words: Sequence[str], source: random.Random) -> Workload:
    """3,000 conversations of 14 to 34 tokens for the tiny checkpoint, so HTTP is the bottleneck."""
    lengths = _spread(3000, 14, 34)
    source.shuffle(lengths)
    texts = [_conversation(*_split(words, source, length)) for length in lengths]
    return Workload("single-short", "tiny", 64, tuple(texts))


def _long(words: Sequence[str], source: random.Random) -> Workload:
    """12 conversations of 1,000 to 3,000 tokens."""
    lengths = _spread(12, 1000, 3000)
    source.shuffle(lengths)
    texts = [_conversation(*_split(words, source, length)) for length in lengths]
    return Workload("long", "deep", 12, tuple(texts))


def _trickle(words: Sequence[str], source: random.Random) -> Workload:
    """8 prompts of about 1,200 tokens x 12 responses of 40 to 80, one response per prompt in turn.

    So two responses to one prompt are never in flight together, as when a trainer scores each rollout once it is done.
    """
    prompts = [_phrase(words, source, num_words) for num_words in _spread(8, 1150, 1250)]
    lengths = _spread(96, 40, 80)
    source.shuffle(lengths)
    texts = [_conversation(prompts[i % 8], _phrase(words, source, length)) for i, length in enumerate(lengths)]
    return Workload("trickle", "deep", 4, tuple(texts))


def _turns(words: Sequence[str], source: random.Random) -> Workload:
    """8 conversations of 8 turns, scored after each turn; the last has about 1,500 tokens. All turn 1s come first, then all turn 2s."""
    conversations = [""] * 8
    texts: list[str] = []
    for turn in range(8):
        for index, length in enumerate(_spread(8, 120, 240)):
            start = "\n" if turn else ""
            conversations[index] += start + _conversation(*_split(words, source, length))
            texts.append(conversations[index])
    return Workload("turns", "deep", 4, tuple(texts))


WORKLOADS: Mapping[str, Callable[[Sequence[str], random.Random], Workload]] = {
    "distinct": _distinct,
    "groups": _groups,
    "pairs": _pairs,
    "single-short": _single_short,
    "long": _long,
    "trickle": _trickle,
    "turns": _turns,
}


def _conversation(prompt: str, response: str) -> str:
    return f"{USER_START}{prompt}{ASSISTANT_START}{response}{TURN_END}"


def _phrase(words: Sequence[str], source: random.Random, num_words: int) -> str:
    return " ".join(source.choices(words, k=num_words))


def _split(words: Sequence[str], source: random.Random, num_tokens: int) -> tuple[str, str]:
    """Return a prompt and a response of `num_tokens` together with their markup, the prompt 30 to 70 % of them."""
    num_words = num_tokens - NUM_MARKUP_TOKENS
    num_prompt_words = max(1, round(num_words * source.uniform(0.3, 0.7)))
    prompt = _phrase(words, source, num_prompt_words)
    return prompt, _phrase(words, source, max(1, num_words - num_prompt_words))


def _spread(count: int, low: int, high: int) -> list[int]:
    """`count` integers from `low` to `high`, both included, evenly spaced."""
    return [round(low + (high - low) * index / (count - 1)) for index in range(count)]
