"""Starts a service for the reliability runs, with the demo models or with a tiny one that makes HTTP the bottleneck."""

import contextlib
import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.client import Connection, Endpoint
from benchmarks.servers.process import ServerProcess, free_port, running

COMMAND = (str(Path(sys.executable).with_name("reward-service")), "serve")
MODELS = Path(__file__).parent.parent / "models"
MODEL = "helpfulness"
SENTENCE = (
    "how long should green tea steep and why does a locksmith open the door when the kettle boils two or three minutes "
    "in water that is not quite hot please explain it to me as if I were a child who has never seen rain at night"
)


def make_tiny(directory: Path) -> Path:
    """A checkpoint with the shipped models' tokenizer and one random layer of width 64."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if not (directory / "model.safetensors").exists():
        shutil.copytree(MODELS / "trunk", directory, ignore=shutil.ignore_patterns("*.gguf", "*.md"))
        sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "num_labels": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "dtype": "float32"}
        config = AutoConfig.from_pretrained(directory, **sizes, **heads)
        torch.manual_seed(0)
        net = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        torch.nn.init.normal_(net.score.weight, std=0.5)
        net.save_pretrained(directory)
    return directory


@contextlib.contextmanager
def served(kind: str, work_dir: Path, *, num_threads: int, **settings: str) -> Iterator[ServerProcess]:
    """Runs the service on a tiny checkpoint as both models (`tiny`), or on the shipped models (`models`).

    Call on the main thread, so that SIGTERM to the caller also stops the service.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    models = {"SAFETY_MODEL": str(MODELS / "safety"), "HELPFULNESS_MODEL": str(MODELS / MODEL)}
    if kind == "tiny":
        models = dict.fromkeys(models, str(make_tiny(work_dir / "tiny-storm")))
    port = free_port()
    chosen = models | {"PORT": str(port), "NUM_THREADS": str(num_threads)} | settings
    environment = {"HF_HUB_OFFLINE": "1"} | {f"REWARD_{name}": value for name, value in chosen.items()}
    with running(
        f"reliability-{kind}",
        COMMAND,
        port=port,
        ready_path="/ready",
        environment=environment,
        log_dir=work_dir / "logs",
    ) as process:
        yield process


def texts(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Distinct texts of mixed length; the lengths in words are log-uniform, so most texts are short."""
    source = random.Random(seed)  # noqa: S311 - texts, not secrets
    words = SENTENCE.split()
    lengths = [round(shortest * (longest / shortest) ** (i / max(count - 1, 1))) for i in range(count)]
    source.shuffle(lengths)
    return [f"{i} " + " ".join(source.choices(words, k=length)) for i, length in enumerate(lengths)]


def score_body(text: str) -> bytes:
    return json.dumps({"items": [{"text": text}]}).encode()


def scores_of(body: bytes) -> dict[str, float]:
    """The scores by model, from a response to `score_body`."""
    return {name: entry["score"] for name, entry in json.loads(body)["results"][0]["scores"].items()}


async def lone_scores(endpoint: Endpoint, bodies: list[bytes]) -> list[dict[str, float]]:
    """The score of each text, computed while the service does nothing else."""
    connection = await Connection.connect(endpoint)
    scores = []
    for body in bodies:
        answer = await connection.send(endpoint.request_bytes(body))
        if answer.status != 200:
            raise RuntimeError(f"alone, a request was answered with {answer.status}: {answer.body[:300]!r}")
        scores.append(scores_of(answer.body))
    connection.close()
    return scores
