"""Chat templates of the shapes that published models have, tokenizers for them, and conversations to render."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.models import CHATML, make_tokenizer


@dataclass(frozen=True)
class Shape:
    """A chat template, and the special tokens that it needs beyond those of the tiny tokenizer."""

    template: str
    end_of_turn: str | None = None
    """What a policy generates last; None: the tokenizer's EOS."""
    special_tokens: tuple[str, ...] = ()
    lead: str = ""
    """What a policy generates before the response itself."""
    content_lead: str = ""
    """What the message's content has before the response itself, if the policy's prompt and lead hold it."""


CHATML_BOS = "{{ bos_token }}" + CHATML
CHATML_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + m['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '[INST] ' + m['content'] + '\n\n' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] + ' ' }}"
    "{% else %}{{ ' ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
QWEN_3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% set parts = m['content'].split('</think>') %}"
    "{% set thoughts = parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' %}"
    "{% if loop.last %}{{ '<think>\n' + thoughts + '\n</think>\n\n' }}{% endif %}{{ parts[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<User>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}{{ '<Assistant>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] | title + ': ' + m['content'] + '\n\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
SHAPES = {
    "chatml": Shape(CHATML, "<|im_end|>"),
    "chatml with bos": Shape(CHATML_BOS, "<|im_end|>"),
    "chatml with a system text of its own": Shape(CHATML_SYSTEM, "<|im_end|>"),
    "llama 3": Shape(LLAMA_3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "llama 2": Shape(LLAMA_2, lead=" "),
    "mistral": Shape(MISTRAL, special_tokens=("[INST]", "[/INST]"), lead=" "),
    "gemma": Shape(GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>")),
    "zephyr": Shape(ZEPHYR),
    "vicuna": Shape(VICUNA, lead=" "),
    "qwen 3": Shape(QWEN_3, "<|im_end|>", ("<think>", "</think>")),
    "deepseek r1": Shape(
        DEEPSEEK_R1,
        special_tokens=("<User>", "<Assistant>", "<think>", "</think>"),
        lead="Well.\n</think>\n\n",
        content_lead="<think>\nWell.\n</think>\n\n",
    ),
    "plain text": Shape(PLAIN, lead=" "),
}
TOKENIZERS: dict[str, dict[str, Any]] = {
    "adds bos": {"add_bos": True},
    "adds neither": {"add_bos": False},
    "adds bos and eos": {"add_bos": True, "add_eos": True},
    "adds eos": {"add_bos": False, "add_eos": True},
    "has no bos": {"add_bos": False, "bos_token": None},
    "bos opens each turn": {"add_bos": False, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
}


def tokenizer_of(shape: Shape, **options: Any) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(template=shape.template, **options)
    if shape.special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(shape.special_tokens)})
    return tokenizer


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A user's and an assistant's in turn."""
    own = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return own if system is None else [{"role": "system", "content": system}, *own]


CONVERSATIONS = {
    "one turn": turns("How long should green tea steep?", "Two to three minutes."),
    "multi-turn": turns(
        "Hi", "Hello!", "How do I pick a lock?", "I can't help with that.", "Why?", "It may be another's."
    ),
    "system prompt": turns("How do I pick a lock?", "Ask a locksmith.", system="Be brief."),
    "chinese": turns("请问绿茶要泡多久", "两到三分钟。水温约八十度。"),
    "emoji": turns("tea? 🍵", "yes 👩‍👩‍👧 ☕️"),
    "code": turns("Sort a list.", "```python\ndef f(x):\n    return sorted(x)\n```"),
    "code that ends in a newline": turns("Sort a list.", "x.sort()\n"),
    "white space around": turns("  How long?  ", "  Two minutes. "),
    "empty response": turns("How long?", ""),
    "empty prompt": turns("", "Two minutes."),
    "over-long": turns("green tea, " * 300, "Two minutes."),
    "special tokens in the prompt": turns(
        "What is <|im_end|>? And </s>, <|im_start|>assistant\n?", "The end of a turn."
    ),
    "special tokens in the response": turns("Which tokens end a turn?", "<|im_end|> and </s> and <|eot_id|> do."),
}

TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% if m.tool_call_id %} ({{ m.tool_call_id }}){% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
"""Renders tools, tool calls and thoughts, and has a variable of its own."""
CALL = {"id": "c1", "type": "function", "function": {"name": "boil", "arguments": {"minutes": 3}}}
TOOL_TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Make tea."},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "done", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is ready."},
]
