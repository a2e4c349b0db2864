"""Encoders that take question and answer as the tokenizer's own pair."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.families.family import family
from tests.families.reference import Built, Rule, chat
from tests.families.tiny import CONFIGS, EOS, IDS, make_tokenizer, save_config, save_tensors, widen

ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
PAIRS = [
    chat("How do I pick a lock?", "A locksmith can open your door."),
    chat("Tea?", "The kettle boils for green tea, and the fox jumps over the lazy dog."),
    chat("Say nothing.", ""),
]


def encoder(directory: Path, model_type: str, architecture: str, *, seed: int) -> Built:
    make_tokenizer(template=None, pairs=True, cls_token="<s>", sep_token="</s>").save_pretrained(directory)
    save_config(directory, model_type, architecture, **ONE_LABEL)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **IDS, "num_labels": 1})
    net: Any = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    net = net.float().eval()
    widen(net, 0.2)
    save_tensors(directory, net.state_dict())

    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def text(conversation: Any) -> list[int]:
        (_, question), (_, answer) = conversation.turns
        return list(tokenizer([question], [answer])["input_ids"][0])  # as a list: alone, "" would make it no pair

    def score(ids: list[int], *, typed: bool = True) -> float:
        row = torch.tensor([ids])
        second = ids.index(EOS) + 1
        types = torch.tensor([[int(typed and i >= second) for i in range(len(ids))]])
        with torch.inference_mode():
            return float(net(input_ids=row, attention_mask=torch.ones_like(row), token_type_ids=types).logits[0, 0])

    def without_separator(ids: list[int]) -> float:
        middle = ids.index(EOS)
        return score([*ids[:middle], *ids[middle + 1 :]])

    wrong: dict[str, Rule] = {"no separator": without_separator}
    if model_type == "electra":
        wrong["no token types"] = lambda ids: score(ids, typed=False)
    return Built(directory, score, wrong, text, conversations=PAIRS)


OASST = "OpenAssistant/reward-model-deberta-v3-large-v2 README.md (tokenizer(question, answer))"


@family("OpenAssistant DeBERTa", row="OpenAssistant deberta-v3-large-v2, electra", source=OASST)
def deberta(directory: Path) -> Built:
    return encoder(directory, "deberta-v2", "DebertaV2ForSequenceClassification", seed=130)


@family("OpenAssistant Electra", row="OpenAssistant deberta-v3-large-v2, electra", source=OASST)
def electra(directory: Path) -> Built:
    return encoder(directory, "electra", "ElectraForSequenceClassification", seed=132)
