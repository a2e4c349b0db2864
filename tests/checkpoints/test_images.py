"""Judges that also see images (Llama Guard 4 is one) are read by their text model alone: requests hold text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.checkpoints.test_trunks import IDS, SPECIAL_IDS, loaded, score
from tests.engine.test_families import tiny_config
from tests.models import make_tokenizer

VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 28, "patch_size": 14}
PROJECTED = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
IMAGE_IDS = {"image_token_index": 300, "boi_token_index": 301, "eoi_token_index": 302}


def text_sizes(family: str) -> dict[str, Any]:
    return {name: value for name, value in (tiny_config(family) | SPECIAL_IDS).items() if name != "model_type"}


def gemma3() -> Any:
    return AutoConfig.for_model(
        "gemma3", text_config=text_sizes("gemma3_text"), vision_config=VISION | PATCHES, **IMAGE_IDS
    )


def llama4() -> Any:
    text = text_sizes("llama4_text") | {"intermediate_size_mlp": 48}
    return AutoConfig.for_model("llama4", text_config=text, vision_config=VISION | PATCHES | PROJECTED, **IMAGE_IDS)


def qwen2_5_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    image_ids = {
        "image_token_id": 300,
        "video_token_id": 301,
        "vision_start_token_id": 302,
        "vision_end_token_id": 303,
    }
    return AutoConfig.for_model(
        "qwen2_5_vl", text_config=text_sizes("qwen2") | {"rope_parameters": rope}, vision_config=vision, **image_ids
    )


@pytest.mark.parametrize("make_config", [gemma3, llama4, qwen2_5_vl])
def test_a_model_of_texts_and_images_is_read_by_its_text_model(make_config: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    auto: Any = AutoModelForImageTextToText
    net = auto.from_config(make_config()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1)
        logits = net(input_ids=torch.tensor([IDS]), attention_mask=torch.ones(1, len(IDS))).logits[0, -1].double()
    net.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    expected = (logits[11] - logits[40]).item()
    model = loaded(tmp_path, declared='{"head": {"positive": 11, "negative": 40}}')
    assert model.is_causal
    assert score(model) == pytest.approx(expected, abs=2e-5 * max(1, abs(expected)))
