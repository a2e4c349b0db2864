"""Every field of the requests of vLLM 0.32.0, SGLang 0.5.23 and text-embeddings-inference 0d124dc on the routes served here.

By server and route: the fields that are honoured; those that are refused, with a value that the server itself would take; and
those that are ignored, each with the reason why that is right.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fields:
    """`base`: a body that is answered; a refused field is added to it."""

    base: dict[str, Any]
    honoured: set[str]
    refused: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)


USER = {"user": "names the client's own user, for the server's log"}
INPUT = {"input": "How long? Two minutes."}
MESSAGES = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
COMMON = {"model", "request_id", "use_activation", "truncate_prompt_tokens", "truncation_side"}
CHAT = {"messages", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template_kwargs"}
ENCODING = {"encoding_format", "embed_dtype", "endianness"}
NOT_SUPPORTED: dict[str, Any] = {
    "cache_salt": "salt",
    "mm_processor_kwargs": {"size": 1},
    "padding": "max_length",
    "priority": 1,
}
NOT_IN_CHAT: dict[str, Any] = {"chat_template": "{{ messages }}", "media_io_kwargs": {"image": {}}}
PAIRS: dict[str, Any] = {"queries": "How long?", "documents": ["Two minutes."]}

VLLM = {
    "/classify": Fields(INPUT, COMMON | CHAT | {"input"}, NOT_SUPPORTED | NOT_IN_CHAT, USER),
    "/pooling": Fields(
        INPUT,
        COMMON | CHAT | ENCODING | {"input", "task"},
        NOT_SUPPORTED | NOT_IN_CHAT | {"dimensions": 1, "data": {"a": 1}},
        USER,
    ),
    "/v1/embeddings": Fields(
        INPUT, COMMON | CHAT | ENCODING | {"input"}, NOT_SUPPORTED | NOT_IN_CHAT | {"dimensions": 1}, USER
    ),
    "/v1/score": Fields(
        PAIRS,
        COMMON
        | {"queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"}
        | {"instruction", "chat_template_kwargs"},
        NOT_SUPPORTED | {"max_tokens_per_query": 1, "max_tokens_per_doc": 1},
        USER,
    ),
    "/v1/rerank": Fields(
        {"query": "How long?", "documents": ["Two minutes."]},
        COMMON | {"query", "documents", "top_n", "instruction", "chat_template_kwargs"},
        NOT_SUPPORTED | {"max_tokens_per_query": 1, "max_tokens_per_doc": 1},
        USER,
    ),
    "/tokenize": Fields(
        {"prompt": "How long?"},
        CHAT | {"model", "prompt", "return_token_strs", "tools"},
        NOT_IN_CHAT | {"mm_processor_kwargs": {"size": 1}},
    ),
}
SGLANG = {
    "/classify": Fields(
        {"text": "How long? Two minutes."},
        {"text", "input_ids", "rid"},
        {
            "input_embeds": [[0.5]],
            "image_data": "a.png",
            "video_data": "a.mp4",
            "audio_data": "a.wav",
            "modalities": ["image"],
            "embed_override_token_id": 1,
            "embed_overrides": [[0.5]],
            "positional_embed_overrides": [0.5],
            "lora_path": "lora",
            "lora_id": "1",
            "priority": 1,
            "dimensions": 1,
            "return_pooled_hidden_states": True,
            "return_prompt_token_ids": True,
            "multi_item_delimiter_indices": [1],
            "token_indices_to_pool": [1],
            "decision_layout": [1],
        },
        {
            "sampling_params": "SGLang keeps it for compatibility and does not use it for this route",
            "log_metrics": "concerns the server's own metrics",
            "is_cross_encoder_request": "pairs of texts are known by their shape",
            "routing_key": "says which replica answers, not what",
            "http_worker_ipc": "SGLang's own: its workers set it",
            "background": "of its responses API; this route answers at once",
            "external_trace_header": "of its Python engine; over HTTP traceparent is a header",
            "received_time": "SGLang's own: its workers set it",
        },
    ),
    "/v1/classify": Fields(
        INPUT,
        {"model", "input"},
        {"priority": 1},
        USER | {"rid": "names the request in SGLang's log, not in the answer"},
    ),
    "/v1/embeddings": Fields(
        INPUT,
        {"input", "model", "encoding_format"},
        {
            "dimensions": 1,
            "priority": 1,
            "lora_path": "lora",
            "embed_override_token_id": 1,
            "embed_overrides": [[[0.5]]],
        },
        USER | {"rid": "names the request in SGLang's log, not in the answer"},
    ),
    "/v1/score": Fields(
        PAIRS,
        {"items", "model"},
        {
            "label_token_ids": [1],
            "apply_softmax": True,
            "item_first": True,
            "temperature": 2.0,
            "return_token_logprobs": True,
            "return_pooled_hidden_states": True,
            "score_extraction_token": "<s>",
            "embed_override_token_id": 1,
            "query_embed_overrides": [[0.5]],
            "item_embed_overrides": [[[0.5]]],
        },
        {"query": "SGLang's form, query and items, is refused for want of vLLM's queries"},
    ),
    "/v1/rerank": Fields(
        {"query": "How long?", "documents": ["Two minutes."]},
        {"query", "documents", "top_n", "return_documents"},
        {"instruct": "Judge."},
    ),
    "/tokenize": Fields(
        {"prompt": "How long?"},
        CHAT | {"model", "prompt", "tools"},
        {"tool_choice": "auto", "reasoning_effort": "low"},
    ),
}
TEI_OPTIONS = {"truncate", "truncation_direction", "raw_scores"}
TEI = {
    "/predict": Fields({"inputs": "How long? Two minutes."}, TEI_OPTIONS | {"inputs"}),
    "/": Fields({"inputs": "How long? Two minutes."}, TEI_OPTIONS | {"inputs", "query", "texts", "return_text"}),
    "/rerank": Fields({"query": "How long?", "texts": ["Two."]}, TEI_OPTIONS | {"query", "texts", "return_text"}),
    "/v1/embeddings": Fields(INPUT, {"input", "model", "encoding_format"}, {"dimensions": 1}, USER),
    "/tokenize": Fields(
        {"prompt": "How long?"},
        {"add_special_tokens"},
        {},
        {
            "inputs": "TEI's form is refused for want of a prompt",
            "prompt_name": "comes with inputs, which are refused",
        },
    ),
}
SERVERS = {"vLLM 0.32.0": VLLM, "SGLang 0.5.23": SGLANG, "text-embeddings-inference 0d124dc": TEI}
OWN = {
    "model": "selects, on every route",
    "activation": "of older verl",
    "softmax": "of older vLLM",
    "normalize": "of older vLLM: refused, as vLLM refuses it",
    "tools": "rendered, where a client sends them beside messages",
    "text": "SGLang's, on the path that both have",
    "request_id": "vLLM's, on the paths that both have",
}
"""Fields that are read beyond those of the three servers' requests, and whose they are."""
