"""Step 7: the figures of `work/evaluation.json` into the model cards and `models/README.md`.

The texts are `data/card_<model>.md` and the README itself; only what stands between the two figure marks is replaced.

    python -m models.recipe.card
"""

import json
import re

from models.recipe.common import DATA, MODELS, WORK
from models.recipe.evaluate import markdown

TITLES = {
    "safety": ("safety, 5-fold by objective", "shorter wins"),
    "helpfulness": ("helpfulness, held-out topics", "longer wins"),
}


def with_figures(text: str, name: str, figures: str) -> str:
    """`text` with the block between `<!-- figures: name -->` and `<!-- end -->` replaced by `figures`."""
    block = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"the text has no place for the figures of {name}")
    return block.sub(lambda match: f"{match[1]}{figures}\n{match[2]}", text)


def main() -> None:
    evaluation = json.loads((WORK / "evaluation.json").read_text())
    readme = (MODELS / "README.md").read_text()
    for name, (title, baseline) in TITLES.items():
        figures = markdown(title, evaluation[name], baseline)
        card = with_figures((DATA / f"card_{name}.md").read_text(), name, figures)
        (MODELS / name / "README.md").write_text(card)
        readme = with_figures(readme, name, figures)
        print(f"{MODELS / name / 'README.md'}")
    (MODELS / "README.md").write_text(readme)


if __name__ == "__main__":
    main()
