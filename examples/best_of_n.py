"""Best of n: scores all candidates of a prompt in one request and keeps the best.

    python -m examples.best_of_n [--url http://127.0.0.1:8000]

The candidates share their prompt, which the service computes once; the last line shows the saving.
"""

import argparse
import sys

from reward_client import RewardClient, Scores

PROMPT = "How long should green tea steep?"
CANDIDATES = [
    "Two to three minutes, in water of about 80 °C; longer makes it bitter.",
    "A while.",
    "tea tea tea tea tea tea",
    "I don't want to talk about tea.",
    "Green tea should steep for two to three minutes.",
]


def rank(client: RewardClient, prompt: str, candidates: list[str]) -> tuple[list[tuple[float, str]], Scores]:
    """The candidates with their helpfulness scores, best first; and the whole answer."""
    scores = client.score([{"prompt": prompt, "response": candidate} for candidate in candidates])
    return sorted(zip(scores.of("helpfulness"), candidates, strict=True), reverse=True), scores


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", default="http://127.0.0.1:8000")
    given = options.parse_args()
    with RewardClient(given.url) as client:
        ranked, scores = rank(client, PROMPT, CANDIDATES)
    sys.stdout.writelines(f"{score:8.3f}  {candidate}\n" for score, candidate in ranked)
    usage = scores.usage
    sys.stdout.write(f"{usage.num_computed_tokens} of {usage.num_tokens} tokens were computed\n")


if __name__ == "__main__":
    main()
