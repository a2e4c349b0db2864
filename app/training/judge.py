"""Evaluates a model on pairs through the app's own POST /compare, so the result is that of the served model."""

import asyncio
import importlib.util
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from app.errors import StartError, TrainingError, install_command
from app.files.output import replaced_when_done, require_other_file
from app.http.file_requests import ask
from app.http.in_process import InProcess
from app.rewards.margins import MarginScheme
from app.settings import Settings, how_to_load
from app.training.evaluation import Evaluation, Result
from app.training.pairs import PairLine, read_pairs
from app.training.report import report

PICTURES = (".png", ".svg", ".pdf")


def compare(
    file: str,
    lines: list[PairLine],
    settings: Settings,
    *,
    model: str,
    margin_scheme: MarginScheme,
    truncation: str,
) -> Evaluation:
    """Scores the lines with POST /compare; loads only `model`. Raises what `ask` raises."""
    alone = settings.only(model)
    options = {"model": model, "margin_scheme": margin_scheme, "truncation": truncation}
    entries = [(line.number, line.to_json()) for line in lines]
    results: list[Result] = []

    def take(answer: dict[str, Any]) -> None:
        results.extend(answer["results"])

    async def run() -> None:
        async with InProcess(alone) as answerer:
            await ask(answerer, file, entries, "/compare", options, take)

    asyncio.run(run())
    return Evaluation(lines, results)


def evaluate(
    file: str,
    settings: Settings,
    *,
    model: str,
    margin_scheme: MarginScheme,
    truncation: str,
    json_file: Path | None,
    png_file: Path | None,
) -> None:
    """Prints the report, and writes the named files. Raises InvalidInputError that names the line, or StartError.

    Checks the arguments before it loads a model.
    """
    if png_file is not None and importlib.util.find_spec("matplotlib") is None:
        raise TrainingError(f"a picture needs matplotlib, which is not installed; run {install_command('train')}")
    if png_file is not None and png_file.suffix.lower() not in PICTURES:
        raise StartError(f"--png is {png_file}; give a file whose name ends in {', '.join(PICTURES)}")
    pairs = read_pairs(file)
    source = settings.model_source(model)
    if source is None:
        raise StartError(f"there is no {model} model to evaluate; {how_to_load(model)}")
    for out in (json_file, png_file):
        if out is not None:
            require_other_file(out, file)
    if json_file is not None and json_file == png_file:
        raise StartError(f"--json and --png are both {json_file}; give another file for one of them")
    for note in pairs.notes:
        sys.stderr.write(f"{note}\n")
    options: dict[str, Any] = {"model": model, "margin_scheme": margin_scheme, "truncation": truncation}
    threshold = settings.safety_threshold if model == "safety" else None
    title = f"{model} model {from_here(source)} on {file}"
    with written(json_file) as json_output, written(png_file) as png_output:
        evaluation = compare(file, pairs.lines, settings, **options)
        sys.stdout.write(report(evaluation, title, margin_scheme, threshold))
        if json_output is not None:
            sweep = {"veto": evaluation.sweep(threshold)} if threshold is not None else {}
            figures = {"file": file, "checkpoint": source, **options, **evaluation.to_dict(), **sweep}
            json_output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if png_output is not None:
            from app.training.figures import draw_report

            draw_report(evaluation, title, threshold, png_output)


def written(path: Path | None) -> AbstractContextManager[Path | None]:
    """A path to write to, which becomes `path` at the end; None without a path."""
    return nullcontext() if path is None else replaced_when_done(path)


def from_here(source: str) -> str:
    """The path relative to the working directory if it is below it, else unchanged."""
    place = Path(source)
    return str(place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else source)
