"""Every step in order: `python -m models.recipe`. Steps are separate commands with files between them."""

import time

from models.recipe import export, folds, report, trunk

STEPS = (trunk, folds, export, report)


def main() -> None:
    for step in STEPS:
        name = step.__name__.rsplit(".", 1)[-1]
        print(f"== {name}", flush=True)
        start = time.monotonic()
        step.main()
        print(f"== {name} took {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
