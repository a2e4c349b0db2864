"""Step 1: the shared base of both models, `models/trunk`: the first layers of SmolLM2-135M-Instruct, still in 4 bits.

The layers' blocks are copied out of the published GGUF file as they are; nothing is quantized again. The last layers,
which serve the next word, are left out: the file stays below 95 MB and a score takes four fifths of the time.

    python -m models.recipe.trunk
"""

from pathlib import Path
from typing import Any

from models.recipe.common import GGUF_NAME, MODELS, gguf_directory

LAYERS = 24
MAX_LENGTH = 4096
FILE = "SmolLM2-135M-Instruct-24-layers.Q4_1.gguf"
PAD = 0
"""<|endoftext|>, which occurs in no conversation. The original pads with <|im_end|>: transformers scores the last token
that is not padding, so it would skip a conversation's closing token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_first_layers(source: Path, target: Path, num_layers: int) -> None:
    """Copies a Llama's GGUF file without the layers from `num_layers` on."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(source)
    changed: dict[str, Any] = {
        "llama.block_count": num_layers,
        "llama.context_length": MAX_LENGTH,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "general.name": f"SmolLM2-135M-Instruct, the first {num_layers} layers",
    }
    writer = GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":  # the writer's own
            continue
        if len(field.types) > 1 and key.startswith("tokenizer."):  # in tokenizer.json; gguf takes 4 s to read them
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, changed.get(key, field.contents()), field.types[0], sub_type)
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and int(tensor.name.split(".")[1]) >= num_layers:
            continue
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = MODELS / "trunk"
    folder.mkdir(parents=True, exist_ok=True)
    write_first_layers(gguf_directory() / GGUF_NAME, folder / FILE, LAYERS)
    (folder / FILE).chmod(0o644)
    config = AutoConfig.from_pretrained(folder, gguf_file=FILE)
    config.architectures = ["LlamaForCausalLM"]
    config.use_cache = False
    config.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf_directory(), gguf_file=GGUF_NAME)
    tokenizer.pad_token, tokenizer.chat_template = "<|endoftext|>", CHAT_TEMPLATE
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(folder)
    size = (folder / FILE).stat().st_size
    print(f"{folder / FILE}: {size / 1e6:.1f} MB, pad {tokenizer.pad_token!r} {config.pad_token_id}")


if __name__ == "__main__":
    main()
