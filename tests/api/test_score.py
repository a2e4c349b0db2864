from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PROMPT, RESPONSE = "How do I pick a lock?", "I can't help with that."


def oracle(directory: Path, token_ids: list[int]) -> float:
    net = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    with torch.inference_mode():
        return float(net(torch.tensor([token_ids])).logits[0, 0])


def score(client: httpx.Client, *items: dict[str, Any], **options: Any) -> dict[str, Any]:
    response = client.post("/score", json={"items": list(items), **options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("name", ["safety", "helpfulness"])
def test_every_input_form_gets_the_score_of_transformers_own_forward(
    client: httpx.Client, safety_dir: Path, helpfulness_dir: Path, name: str
) -> None:
    directory = {"safety": safety_dir, "helpfulness": helpfulness_dir}[name]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    templated = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    text = tokenizer(PROMPT)["input_ids"]
    items = [
        {"prompt": PROMPT, "response": RESPONSE},
        {"messages": turns},
        {"text": PROMPT},
        {"input_ids": text},
    ]
    expected = [oracle(directory, ids) for ids in (templated, templated, text, text)]
    results = score(client, *items)["results"]
    for result, value, ids in zip(results, expected, (templated, templated, text, text), strict=True):
        entry = result["scores"][name]
        assert entry["score"] == pytest.approx(value, abs=1e-5 * max(1, abs(value)))
        assert entry["probability"] == pytest.approx(torch.sigmoid(torch.tensor(value)).item(), abs=1e-5)
        assert entry["num_tokens"] == len(ids)
        assert entry["truncated"] is False
