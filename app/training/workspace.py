"""The directory of a run: its options, its checkpoints to resume from, and its result.

OUT/                        the checkpoint, once the run has ended: config, weights, tokenizer
OUT/training.json           the options, the data, the result
OUT/loss.json, OUT/loss.png the loss curve
OUT/adapter/                with LoRA the adapter alone, as peft reads it; the checkpoint has it merged
OUT/RATING/                 of rated groups, in place of the checkpoint and the adapter: those of each rating
OUT/checkpoints/            checkpoints to resume from; deleted when the run has ended
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from app.errors import TrainingError
from app.files.output import require_new_directory
from app.training.options import DEFAULTS, TrainOptions

STATE_FILE = "trainer_state.json"
"""The last file that transformers writes of a checkpoint; if it is complete, so are the others."""


class Workspace:
    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.adapter = out / "adapter"
        self.record_file = out / "training.json"

    def check(self, *, resume: bool) -> None:
        """Raises TrainingError if there is nothing to resume, StartError if a new run would overwrite something or cannot write."""
        if resume:
            if not self.record_file.is_file():
                raise TrainingError(f"{self.out} holds no run to resume; start one without --resume")
            if "result" in self.record:
                raise TrainingError(f"the run in {self.out} has ended; there is nothing to resume")
        else:
            remedy = ", or --resume to go on with the run in it" if self.can_resume else ""
            require_new_directory(self.out, f"give a new directory{remedy}")

    @property
    def can_resume(self) -> bool:
        """Whether a run on pairs was begun here; one on rated groups has no checkpoints."""
        return self.record_file.is_file() and "ratings" not in self.record

    @property
    def record(self) -> dict[str, Any]:
        """Raises TrainingError where the file is not one that a run wrote."""
        try:
            record = from_json(self.record_file.read_bytes())
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
            raise TrainingError(f"{self.record_file} is not the record of a run; give a new directory")
        return record

    def begin(self, options: TrainOptions, digest: str, facts: dict[str, Any]) -> None:
        """Records the options; for a resumed run, raises TrainingError if they differ from the recorded ones."""
        asked = options.fixed | {"data": digest}
        if options.resume:
            first = DEFAULTS | self.record["options"]  # an option that a run begun by an older version did not have
            for name in sorted(asked):
                if asked.get(name) != first.get(name):
                    what = (
                        "the data differ" if name == "data" else f"{name} was {first.get(name)}, not {asked.get(name)}"
                    )
                    raise TrainingError(f"{what}, in the run in {self.out}; resume it as it was begun")
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            self.write_record({"options": asked, "base": str(options.base), "file": options.data, **facts})

    def finish(self, result: dict[str, Any]) -> None:
        """Records the result, with which the run has ended."""
        self.write_record(self.record | {"result": result})

    def delete_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def write_record(self, record: dict[str, Any]) -> None:
        written = self.record_file.with_suffix(".tmp")
        written.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.replace(self.record_file)  # atomic: a kill never leaves half a record

    def last_checkpoint(self) -> str | None:
        """The newest complete checkpoint; deletes incomplete ones."""
        whole = {}
        for place in self.checkpoints.glob("checkpoint-*"):
            try:
                whole[int(json.loads((place / STATE_FILE).read_text())["global_step"])] = place
            except (OSError, ValueError, KeyError):
                shutil.rmtree(place)
        return str(whole[max(whole)]) if whole else None
