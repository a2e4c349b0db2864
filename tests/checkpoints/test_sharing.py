"""Adapters on one base read it once, share what they leave alone of it, and score as each does by itself."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.checkpoints import merging, placement, sharing
from app.checkpoints.loading import load_checkpoint
from app.checkpoints.saved import read_saved
from app.checkpoints.sharing import SharedBases, shared_bytes, weights_in_memory
from app.engine.batch import Batch
from app.engine.checkpoint import Checkpoint
from app.engine.reward_model import RewardModel
from app.engine.self_test import select_plan
from app.engine.sequence import TokenSequence
from app.errors import ModelRefusedError
from app.service import load_models
from app.settings import Settings
from tests.api.asking import TEA, ask
from tests.checkpoints.test_adapters import make_adapter
from tests.conftest import Serve
from tests.models import make_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
SEQUENCES = [TokenSequence.of([*range(5, n)]) for n in (9, 40, 90)]
ADAPTED = ("q_proj", "up_proj")
OTHERWISE: dict[str, dict[str, Any]] = {
    "biases": {"bias": "all"},
    "dora on every layer": {"use_dora": True, "target_modules": "all-linear"},
    "the embedding trained": {"modules_to_save": ["score", "embed_tokens"]},
    "lora on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "the base's head": {"modules_to_save": None, "task_type": None},
}


def make_base(directory: Path) -> Path:
    return make_model(directory / "base", attention_bias=True)


def make_adapters(base: Path) -> list[Path]:
    return [make_adapter(base.parent / f"adapter{seed}", base, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed, nor its adapters."""
    return make_base(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def adapters(base: Path) -> list[Path]:
    return make_adapters(base)


@pytest.fixture(scope="module")
def scores_alone(adapters: list[Path]) -> dict[Path, list[float]]:
    return {adapter: scores_of(load_checkpoint(str(adapter), device="cpu")) for adapter in adapters}


def load_all(sources: Iterable[Path], **options: Any) -> list[Checkpoint]:
    """As the service loads several models."""
    names = [str(source) for source in sources]
    bases = SharedBases(names)
    return [load_checkpoint(name, device="cpu", bases=bases, **options) for name in names]


def scores_of(checkpoint: Checkpoint) -> list[float]:
    model = RewardModel("maths", checkpoint, max_batch_tokens=2048)
    select_plan(model)
    return [scored.score for scored in model.score(Batch.of(SEQUENCES))]


def storages(*checkpoints: Checkpoint) -> set[int]:
    return {w.untyped_storage().data_ptr() for each in checkpoints for w in weights_in_memory(each.net)}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_two_adapters_share_every_tensor_that_neither_changes(adapters: list[Path], dtype: str) -> None:
    alone = [load_checkpoint(str(adapter), device="cpu", dtype=dtype) for adapter in adapters]
    together = load_all(adapters, dtype=dtype)
    first, second = (dict(each.net.named_parameters()) for each in together)
    for name, weight in first.items():
        own = any(each in name for each in (*ADAPTED, "score")) and not name.endswith("bias")
        memory = [
            {w.untyped_storage().data_ptr() for w in weights_in_memory(Holder(p))} for p in (weight, second[name])
        ]
        assert (memory[0].isdisjoint(memory[1])) == own, name
        assert own or memory[0] == memory[1], name
    assert len(storages(*alone)) == 2 * len(storages(alone[0]))
    scores = [scores_of(each) for each in together]
    assert scores == [scores_of(each) for each in alone]
    assert scores[0] != scores[1]


class Holder(torch.nn.Module):
    """A module with one parameter."""

    def __init__(self, parameter: Tensor) -> None:
        super().__init__()
        self.parameter = parameter


@pytest.mark.parametrize("options", OTHERWISE.values(), ids=OTHERWISE)
def test_no_kind_of_adapter_changes_the_base_of_the_others(
    base: Path,
    adapters: list[Path],
    scores_alone: dict[Path, list[float]],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """Neither of those that are loaded before it nor of those after it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save_embedding_layers.*")
        other = make_adapter(tmp_path / "other", base, seed=5, **options)
    if options.get("bias") == "all":
        file = other / "adapter_model.safetensors"
        tensors = load_file(file)
        biases = [name for name in tensors if name.endswith(("q_proj.base_layer.bias", "v_proj.bias"))]
        assert biases  # of a layer that is adapted, and of one that is not
        save_file(tensors | {name: torch.full_like(tensors[name], 0.5) for name in biases}, file)
    alone = {other: scores_of(load_checkpoint(str(other), device="cpu")), **scores_alone}
    for sources in ([other, *adapters], [*adapters, other]):
        together = load_all(sources)
        for source, checkpoint in zip(sources, together, strict=True):
            assert scores_of(checkpoint) == alone[source], source.name
        assert shared_bytes(together[1].net, [together[0].net]) > 0


def test_the_base_is_read_once_and_forgotten_after_its_last_adapter(
    base: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(source: str, trust_remote_code: bool) -> Any:
        read.append(source)
        return read_saved(source, trust_remote_code)

    monkeypatch.setattr(sharing, "read_saved", counting)
    link = tmp_path / "link"
    link.symlink_to(base)
    third = make_adapter(tmp_path / "adapter3", link, seed=3)
    names = [str(source) for source in (*adapters, third)]
    bases = SharedBases(names)
    loaded = [load_checkpoint(name, device="cpu", bases=bases) for name in names]
    assert len(read) == 1
    assert not bases._bases
    assert shared_bytes(loaded[2].net, [loaded[0].net]) > 0


def test_a_base_that_changes_meanwhile_is_read_again(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    names = [str(source) for source in make_adapters(base)]
    bases = SharedBases(names)
    load_checkpoint(names[0], device="cpu", bases=bases)
    make_model(base, seed=9, attention_bias=True)
    second = load_checkpoint(names[1], device="cpu", bases=bases)
    assert scores_of(second) == scores_of(load_checkpoint(names[1], device="cpu"))


def test_an_adapter_with_a_value_head_shares_the_trunk_of_a_classifiers(tmp_path: Path) -> None:
    lm = make_model(tmp_path / "lm")
    AutoModelForCausalLM.from_pretrained(lm).save_pretrained(lm)
    classifier = make_adapter(tmp_path / "classifier", lm, modules_to_save=["score"])
    valued = tmp_path / "valued"
    config = peft.LoraConfig(r=4, target_modules=["v_proj"], task_type=peft.TaskType.CAUSAL_LM)
    net: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(lm), config)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    net.save_pretrained(str(valued))
    save_file(
        {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)},
        valued / "value_head.safetensors",
    )
    alone = [scores_of(load_checkpoint(str(source), device="cpu")) for source in (classifier, valued)]
    together = load_all([classifier, valued])
    assert [scores_of(each) for each in together] == alone
    trunks = [dict(each.net.base_model.named_parameters()) for each in together]
    for name, weight in trunks[1].items():
        own = any(each in name for each in (*ADAPTED, "v_proj"))
        assert (weight.data_ptr() != trunks[0][name].data_ptr()) == own, name


def test_the_memory_check_counts_what_is_shared_once(adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(placement, "require_memory", lambda _source, _device, num_bytes: asked.append(num_bytes))
    first, second = load_all(adapters)
    weights = bytes_of([*first.net.parameters(), *second.net.parameters()])
    assert weights < sum(asked) < weights * 1.4  # the head and the adapted layers are counted twice: merged, and placed
    asked.clear()
    for adapter in adapters:
        load_checkpoint(str(adapter), device="cpu")
    assert sum(asked) > 2 * bytes_of(first.net.parameters())


def test_models_that_are_loaded_together_share_their_base_and_say_so(
    adapters: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    models = load_models(Settings.model_validate({"models": {f"m{i}": str(each) for i, each in enumerate(adapters)}}))
    shared = shared_bytes(models["m1"].net, [models["m0"].net])
    assert shared > 0.5 * bytes_of(models["m0"].net.parameters())
    assert any("m1: " in record.message and "which has the same base" in record.message for record in caplog.records)


def test_a_reload_that_replaces_one_model_leaves_the_other_right(serve: Serve, tmp_path: Path) -> None:
    base = make_base(tmp_path)
    adapters = make_adapters(base)
    models = {"maths": str(adapters[0]), "style": str(adapters[1])}
    with serve(models=models, safety_model="", helpfulness_model="", api_keys=("operator",)) as client:
        client.headers["authorization"] = "Bearer operator"
        before = read_scores(client)
        make_adapter(adapters[0], base, seed=7)
        assert client.post("/admin/reload").status_code == 200
        after = read_scores(client)
    assert after["style"] == before["style"]
    assert after["maths"] != before["maths"]


def read_scores(client: Any) -> dict[str, float]:
    (result,) = ask(client, "/score", {"items": [TEA]})["results"]
    return {name: entry["score"] for name, entry in result["scores"].items()}


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ('{"head": "no_such_head"}', "declares the head no_such_head"),
        ('{"head": {"token": "no-such-token"}}', "no-such-token"),
        ('{"head": {"token": "a"}, "position": {"at": "no-such-token"}}', "no-such-token"),
        ('{"position": {"at": "no-such-token"}}', "no-such-token"),
        ('{"map": {"output": 3}}', "the map reads output 3"),
        ('{"text": {"template": "no-such-template"}}', "no chat template 'no-such-template'"),
    ],
)
def test_a_wrong_declaration_on_an_adapter_is_found_before_its_base_is_read(
    adapters: list[Path], monkeypatch: pytest.MonkeyPatch, declared: str, says: str
) -> None:
    def reads(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base is read")

    monkeypatch.setattr(merging, "build", reads)
    with pytest.raises(ModelRefusedError) as refused:
        load_checkpoint(str(adapters[0]), device="cpu", declared=declared)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
