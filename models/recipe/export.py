"""Step 3: the training on everything as two checkpoints, `models/safety` and `models/helpfulness`: adapter and head.

Both get the same adapter and a head of their own. The safety head is calibrated: scaled, and shifted along the direction
in which all final states are constant, since a Llama's head has no bias.

    python -m models.recipe.export
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.training.rated.save import HEAD, split_heads
from models.recipe.common import MODELS, WORK
from models.recipe.folds import FOLDS, read_scores
from models.recipe.groups import TASKS
from models.recipe.judge import Calibration, Scored, calibrate

HEAD_WEIGHT = f"{HEAD}weight"
BASE = "models/trunk"
"""From where the service is started, or the folder of this name beside the adapter's."""
RIDGE = 1e-4


def constant_direction(features: Tensor) -> Tensor:
    """(1, width) weights whose product with every final state is as near to 1 as it gets: ridge regression on 1."""
    states = features.double()
    gram = states.T @ states / len(states)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    direction: Tensor = torch.linalg.solve(gram, states.mean(0))
    return direction.float()[None]


def calibrations_of(scored: Sequence[Scored]) -> dict[str, Calibration]:
    """For each fold one that is fitted to the other folds' scores."""
    folds = {each.fold for each in scored}
    return {fold: calibrate([each for each in scored if each.fold != fold]) for fold in folds}


def calibrated(head: Tensor, features: Tensor, calibration: Calibration) -> Tensor:
    constant = constant_direction(features)
    error = (features @ constant.T - 1).std()
    print(
        f"calibration: scale {calibration.scale:.3f}, shift {calibration.shift:.3f} +- {abs(calibration.shift) * error:.3f}"
    )
    return calibration.scale * head + calibration.shift * constant


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def main() -> None:
    source = WORK / "adapter_all"
    config = json.loads((source / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": BASE, "modules_to_save": ["score"]}
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set, in another order each time
    features = torch.load(WORK / "features_all.pt")
    folds = [name for name in FOLDS if (WORK / f"scores_{name}.jsonl").exists()]
    scored = [each for name in folds for each in read_scores(name)]
    calibration = calibrate(scored)
    for task, tensors in split_heads(load_file(source / "adapter_model.safetensors"), TASKS).items():
        if task == "safety":
            tensors[HEAD_WEIGHT] = calibrated(tensors[HEAD_WEIGHT], features, calibration).contiguous()
        write_checkpoint(MODELS / task, tensors, config)
        size = sum(file.stat().st_size for file in (MODELS / task).iterdir())
        print(f"{MODELS / task}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
