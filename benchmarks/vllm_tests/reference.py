"""The reference of vLLM's tests: transformers' own scores of the served model. Runs in vLLM's environment."""

import os
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class CrossEncoder:
    """`hf_runner(name, is_cross_encoder=True)`: pairs to probabilities, each pair as prompt and response."""

    def __init__(self, *_: Any, **__: Any) -> None:
        path = os.environ["VLLM_TESTS_MODEL"]
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()

    def predict(self, pairs: list[list[str]]) -> torch.Tensor:
        return torch.stack([self.probability(query, document) for query, document in pairs])

    @torch.inference_mode()
    def probability(self, query: str, document: str) -> torch.Tensor:
        turns = [{"role": "user", "content": query}, {"role": "assistant", "content": document}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        encoded = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        return torch.sigmoid(self.model(**encoded).logits[0, 0])


def check_embeddings_close(
    *, embeddings_0_lst: Any, embeddings_1_lst: Any, name_0: str, name_1: str, tol: float = 1e-3
) -> None:
    """Asserts that each pair of vectors has a cosine similarity within `tol` of 1, as vLLM's helper of this name does."""
    for i, (a, b) in enumerate(zip(embeddings_0_lst, embeddings_1_lst, strict=True)):
        one, other = (torch.tensor(each, dtype=torch.float64).flatten() for each in (a, b))
        similarity = torch.cosine_similarity(one, other, dim=0).item()
        assert similarity >= 1 - tol, f"{name_0} and {name_1} differ at {i}: {similarity}"
