"""A checkpoint that lost a part, was renamed, or is declared wrongly: one clear line, or its authors' score. Never another score."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.errors import ModelRefusedError
from tests.families.catalogue import FAMILIES
from tests.families.measure import TOLERANCE, measure
from tests.families.reference import Built

BUILD = {family.name: family.build for family in FAMILIES}
Edit = Callable[[Path], None]


def config(**changes: Any) -> Edit:
    """A change to None drops the key."""

    def edit(directory: Path) -> None:
        file = directory / "config.json"
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return edit


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Edit:
    def edit(directory: Path) -> None:
        weight_map: dict[str, str] = {}
        for file in sorted(directory.glob("*.safetensors")):
            whole = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
            save_file(whole, file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(whole, file.name) if file.name.startswith("model") else {}
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            index.write_text(json.dumps({"weight_map": weight_map}))

    return edit


def dropping(part: str) -> Edit:
    return tensors(lambda whole: {name: tensor for name, tensor in whole.items() if part not in name})


def changing(part: str, change: Callable[[Tensor], Tensor]) -> Edit:
    return tensors(lambda whole: {name: change(t) if part in name else t for name, t in whole.items()})


def renaming(old: str, new: str) -> Edit:
    return tensors(lambda whole: {name.replace(old, new): tensor for name, tensor in whole.items()})


def removing(pattern: str) -> Edit:
    def edit(directory: Path) -> None:
        for file in directory.glob(pattern):
            file.unlink()

    return edit


def both(*edits: Edit) -> Edit:
    def edit(directory: Path) -> None:
        for each in edits:
            each(directory)

    return edit


LLAMA = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
IN_BFLOAT16 = tensors(lambda whole: {name: t.bfloat16() if t.is_floating_point() else t for name, t in whole.items()})
SAME: dict[str, tuple[str, Edit]] = {
    "a process reward model whose head is a bare Linear": (
        "Skywork-o1-Open-PRM",
        renaming("v_head.summary.", "v_head."),
    ),
    "OpenRLHF in bfloat16": ("OpenRLHF, score", IN_BFLOAT16),
    "beaver in bfloat16": ("beaver-7b cost", IN_BFLOAT16),
    "GRM in bfloat16": ("GRM-*-sftreg", IN_BFLOAT16),
    "InternLM2 in bfloat16": ("InternLM2-reward", IN_BFLOAT16),
    "a judge in bfloat16": ("Qwen3Guard-Gen", IN_BFLOAT16),
    "a classifier in bfloat16": ("Skywork-Reward-Gemma-2", IN_BFLOAT16),
    "Athene under the class of its card": (
        "Athene-RM",
        config(architectures=["CustomAutoModelForSequenceClassification"]),
    ),
    "a process reward model with two labels": ("Qwen2.5-Math-PRM", config(num_labels=2)),
    "InternLM2 with dynamic RoPE": ("InternLM2-reward", config(rope_scaling={"type": "dynamic", "factor": 2.0})),
    "OpenRLHF behind module.": ("OpenRLHF, value_head", tensors(lambda w: {f"module.{n}": t for n, t in w.items()})),
    "OpenRLHF without an architecture": ("OpenRLHF, value_head", config(architectures=None)),
    "beaver renamed": ("beaver-7b cost", both(config(**LLAMA), renaming("score_head.", "score."))),
    "beaver without its normalizer's tensors": ("beaver-7b reward", dropping("normalizer.")),
    "beaver with other numbers in its config": ("beaver-7b reward", config(mean=[9.0], var=[1.0])),
    "Starling without its class": ("Starling-RM-34B", config(architectures=None)),
    "a key that means nothing": ("Skywork-Reward-Llama-3.1", config(pooling="mean")),
}
REFUSED: dict[str, tuple[str, Edit, str]] = {
    "head lost": ("OpenRLHF, value_head", dropping("value_head"), "have no head"),
    "head of two rows": ("OpenRLHF, value_head", changing("value_head", lambda w: torch.cat([w, w])), "has 2 outputs"),
    "head transposed": ("OpenRLHF, value_head", changing("value_head", lambda w: w.T), r"value_head.weight \[32, 1\]"),
    "head without rows": ("OpenRLHF, value_head", changing("value_head", lambda w: w[0]), r"value_head.weight \[32\]"),
    "head not finite": ("UltraRM-13b", changing("regression_head", lambda w: w * torch.nan), "NaN"),
    "bias lost": ("LLaMA-Factory, full", dropping("v_head.summary.bias"), "lacks v_head.summary.bias"),
    "first bias lost": ("GRM-*-sftreg", dropping("summary.0.bias"), "lacks v_head.summary.0.bias"),
    "declared bias lost": ("beaver-7b reward", dropping("score_head.bias"), "lacks score_head.bias"),
    "half a head": ("GRM-*-sftreg", dropping("summary.2"), "has 16 outputs"),
    "head file lost": (
        "LLaMA-Factory, full",
        removing("value_head.safetensors"),
        "not a sequence classifier",
    ),
    "adapter without head": (
        "LLaMA-Factory, LoRA",
        removing("value_head.safetensors"),
        "not a sequence classifier",
    ),
    "critic": ("beaver-7b reward", config(score_type="critic"), "score_type 'critic'"),
    "Athene renamed": ("Athene-RM", config(**LLAMA), r'v_head.weight \[1, 32\].*"head": '),
    "INF-ORM renamed": ("INF-ORM-Llama3.1-70B", config(**LLAMA), r'score.0.weight \[32, 32\].*"head": '),
    "UltraRM renamed": ("UltraRM-13b", config(**LLAMA), r'regression_head.weight \[1, 32\].*"head": '),
    "Starling's trunk renamed": (
        "Starling-RM-34B",
        both(config(**LLAMA), renaming("transformer.", "model.")),
        r"v_head.weight \[1, 32\]",
    ),
    "classifier with a bias": (
        "Skywork-Reward-Llama-3.1",
        tensors(lambda w: w | ({"score.bias": torch.ones(1)} if "score.weight" in w else {})),
        "score.bias",
    ),
    "trunk's weight lost": ("Skywork-Reward-Llama-3.1", dropping("layers.1.mlp.up"), "use an intact checkpoint"),
    "trunk's bias lost": ("OpenRLHF, score", dropping("q_proj.bias"), "use an intact checkpoint"),
    "trunk's weight transposed": ("OpenRLHF, score", changing("k_proj.weight", lambda w: w.T), "of shape"),
    "output embedding lost": ("A yes/no judge", dropping("lm_head"), "no output embedding"),
    "no tokenizer": (
        "Skywork-Reward-Llama-3.1",
        removing("*token*"),
        "it has no tokenizer",
    ),
}
NOT_SERVED: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "ArmoRM": (
        "LlamaForRewardModelWithGating",
        {"regression_layer.weight": (19, 32), "gating.layers.0.weight": (32, 32), "reward_transform_matrix": (19, 19)},
        "not served",
    ),
    "LDL": ("LDLRewardModel27B", {"regression_layer.network.0.weight": (8, 32)}, "not served"),
    "a multi-attribute head": (
        "LlamaForMultiAttribute",
        {"regression_layer.weight": (10, 32)},
        "regression_layer.weight",
    ),
    "ten labels": ("LlamaForSequenceClassification", {"score.weight": (10, 32)}, "num_labels 10"),
    "PairRM": ("DebertaV2PairRM", {"cls_token_embedding": (1, 32), "score.weight": (1, 96)}, "not served"),
}
DECLARED: dict[str, str] = {
    '{"hed": {}}': "unknown key hed",
    '{"head": ': "not valid JSON",
    '{"preset": "nope"}': "no preset 'nope'; there are granite-guardian",
    '{"head": "nothere"}': "declares the head nothere",
    '{"head": {"token": 99999}}': "ids 0 to 479",
    '{"head": {"token": true}}': "valid integer",
    '{"head": {"positive": ["definitely not"], "negative": ["No"]}}': "11 tokens",
    '{"head": {"positive": ["Yes"], "negative": ["Yes"]}}': "share 'Yes'",
    '{"head": {"token": 0}, "map": {"scale": 0}}': "greater than 0",
    '{"head": {"token": 0}, "map": {"shift": NaN}}': "finite",
    '{"head": {"token": 0}, "map": {"output": 3}}': "reads output 3 of a head with 1",
    '{"head": {"token": 0}, "position": {"at": []}}': "exactly one of",
    '{"head": {"token": 0}, "position": {"kind": "last", "in_response": true}}': "go with at or before",
    '{"head": {"token": 0}, "position": {"index": 1, "after": 5}}': "go with at or before",
    '{"head": {"token": 0}, "text": {"steps": {"separator": "", "mark": 5}}}': "at least 1 character",
    '{"head": {"token": 0}, "text": {"steps": {"separator": "a", "mark": []}}}': "at least 1 item",
    '{"head": {"token": 0}, "text": {"steps": {"separator": "a", "mark": 5}, "add_eos": true}}': "leave out append",
    '{"head": {"token": 0}, "text": {"append": [""]}}': "text.append",
    '{"head": {"token": 0}, "text": {"add_bos": "yes"}}': "valid boolean",
    '{"head": {"token": 0}, "text": {"template": "{{ messages["}}': "not valid Jinja",
    '{"head": {"token": 0}, "text": {"template": "no.jinja"}}': "no chat template",
    '{"head": {"token": 0}, "text": {"template_kwargs": {"guidelines": "a"}}}': "not a variable of the chat template",
    '{"head": {"token": 0}, "text": {"template_kwargs": {"messages": []}}}': "not a variable of the chat template",
}


def built(name: str, edit: Edit, directory: Path) -> Built:
    checkpoint = BUILD[name](directory / "checkpoint")
    edit(checkpoint.directory)
    return checkpoint


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers


@pytest.mark.parametrize("name", SAME)
def test_a_checkpoint_is_known_by_what_is_left(name: str, tmp_path: Path) -> None:
    family, edit = SAME[name]
    assert max(each.difference for each in measure(built(family, edit, tmp_path))) <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_lost_a_part_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    family, edit, message = REFUSED[name]
    with pytest.raises(ModelRefusedError, match=message) as refused:
        measure(built(family, edit, tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NOT_SERVED)
def test_a_family_that_is_not_served_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    architecture, shapes, message = NOT_SERVED[name]
    checkpoint = BUILD["tulu-2-70b-uf-mean-rm"](tmp_path / "checkpoint")
    labels = {str(i): f"LABEL_{i}" for i in range(shapes.get("score.weight", (1,))[0])}
    config(architectures=[architecture], id2label=labels, label2id=None)(checkpoint.directory)
    dropping("score.weight")(checkpoint.directory)
    tensors(lambda whole: whole | {name: torch.ones(shape) for name, shape in shapes.items()})(checkpoint.directory)
    with pytest.raises(ModelRefusedError, match=message) as refused:
        measure(checkpoint)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("declared", DECLARED)
def test_a_wrong_declaration_is_refused_in_one_line(declared: str, tmp_path: Path) -> None:
    checkpoint = BUILD["Llama-3.1-Nemotron-70B-Reward-HF"](tmp_path / "checkpoint")
    checkpoint.declared = declared
    with pytest.raises(ModelRefusedError, match=DECLARED[declared]) as refused:
        measure(checkpoint)
    assert "\n" not in str(refused.value)
