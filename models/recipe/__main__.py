"""Every step in order: `python -m models.recipe`. Steps are separate commands with files between them.

The language model's answers (`generate`, about 25 minutes on 2 cores) are committed and not sampled again.
"""

import time

from models.recipe import (
    card,
    cut,
    evaluate,
    helpfulness_pairs,
    safety_data,
    safety_pairs,
    train_helpfulness,
    train_safety,
)

STEPS = (cut, safety_data, safety_pairs, train_safety, helpfulness_pairs, train_helpfulness, evaluate, card)


def main() -> None:
    for step in STEPS:
        name = step.__name__.rsplit(".", 1)[-1]
        print(f"== {name}", flush=True)
        start = time.monotonic()
        step.main()
        print(f"== {name} took {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
