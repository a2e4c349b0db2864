"""The table of docs/models.md: what is found, what must be declared, and the largest difference from the authors' scores.

python -m tests.families.table        builds every family's checkpoint, measures, and writes the table
"""

import tempfile
from pathlib import Path

from app.checkpoints.inspect import inspect
from tests.families.catalogue import FAMILIES
from tests.families.family import Family
from tests.families.measure import measure

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- written by: make models-table -->\n", "<!-- end -->\n"
INSPECTED = ("OpenRLHF, value_head", "beaver-7b cost", "Athene-RM", "Qwen2.5-Math-PRM", "ShieldGemma")
SHOWN = {"trunk", "head", "position", "map", "text"}
FOUND: dict[str, str] = {
    "Skywork-Reward-Llama-3.1": "plain classifier: the rightmost token that is not the pad token",
    "Skywork-Reward-V2-Qwen3": "plain classifier",
    "Skywork-Reward-Gemma-2": "plain classifier, attention soft-caps",
    "RM-Mistral-7B, FsfairX-LLaMA3-RM, RM-Gemma": "plain classifier; they were trained without BOS",
    "OffsetBias, tulu-3-8B-RM, RM-RB2, TRL": "plain classifier",
    "tulu-2-70b-uf-mean-rm": "plain classifier without a pad token: the last token",
    "GRM-*-rewardmodel-ft": "plain classifier with pad == eos; its authors read the last token, EOS or not",
    "gpt2-large-helpful, gpt2-large-harmless": "plain classifier; the tokenizer has no template",
    "RewardPreferenceBert": "ModernBERT classifier in `pytorch_model.safetensors`",
    "OpenRLHF": "`value_head` or `score` at the last token, EOS added unless there; `mean` and `std` only if declared",
    "LLaMA-Factory": "`value_head.safetensors` beside a full model or a LoRA adapter; weight and bias, last token",
    "TRL value head": "`v_head.summary` in the model's own file; weight and bias, last token",
    "UltraRM-13b": "`regression_head`, last token; the card's template (`ultrarm`)",
    "Eurus-RM-7b": "`regression_head`, last token; the card's template (`eurus`)",
    "Starling-RM": "`v_head`; the 34B before the first token 0, the 7B (its `.bin` after `reward-service convert`) at the last token",
    "Athene-RM": "`v_head` at the tokenizer's CLS token, which is appended",
    "Safe RLHF (beaver-7b)": "`score_head` and bias; normalizer where `do_normalize`; a cost's sign is turned: higher is safer",
    "InternLM2-reward": "`v_head` at the reward token, appended unless there; native trunk, no remote code",
    "oasst-rm-2-pythia": "`out_proj` over the mean of all states or the last one, as `pooling` says",
    "GRM-*-sftreg": "`v_head.summary`, one or two layers, last token",
    "INF-ORM-Llama3.1-70B": "two layers at the token before the first pad",
    "Qwen2.5-Math-RM-72B, WorldPM-72B": "two layers at the token before the first pad",
    "Qwen2.5-Math-PRM": "two layers at each `<extra_0>`; log-odds of the two classes; the last step is the score",
    "Skywork-o1-Open-PRM": "`v_head`, sigmoid, at the newline behind each line of the response; the last is the score",
    "RLHFlow PRM": "log-odds of `+` and `-` where each assistant turn `+` begins",
    "math-shepherd-mistral-7b-prm": "log-odds of `+` and `-` at each `ки`",
    "Llama Guard 1": "log-odds of `safe` and `unsafe`",
    "Llama Guard 2, 3, 4": "log-odds of `safe` and `unsafe` behind a forced blank line",
    "ShieldGemma": "log-odds of `No` and `Yes` under the final soft-cap; your policy goes into the template",
    "Qwen3Guard-Gen": "log-odds of ` Safe` behind a forced `Safety:`; Controversial counts as unsafe",
    "Granite Guardian 3.0-3.2": "log-odds of `No` and `Yes`, logits divided by `logits_scaling`",
    "Granite Guardian 3.3": "log-odds of ` no` and ` yes` behind a forced `<score>`",
    "WildGuard": 'log-odds of `no` and `yes` to "Harmful response", the two answers before it forced',
    "Any yes/no judge": "log-odds of `Yes` and `No` where the answer begins",
    "Llama-3.1-Nemotron-70B-Reward-HF": "the logit of token 0 at the last token",
    "OpenAssistant deberta-v3-large-v2, electra": "classifier over the tokenizer's pair of question and answer",
}


BENCH = "allenai/reward-bench 05a9005"
CLASSIFIER = "run: transformers 5.23, AutoModelForSequenceClassification"
COMPARED: dict[str, str] = {
    "Skywork-Reward-Llama-3.1": f"{CLASSIFIER}, as in SkyworkAI/Skywork-Reward 03c205f",
    "Skywork-Reward-V2-Qwen3": CLASSIFIER,
    "Skywork-Reward-Gemma-2": f"{CLASSIFIER}, as in SkyworkAI/Skywork-Reward 03c205f",
    "RM-Mistral-7B, FsfairX-LLaMA3-RM, RM-Gemma": "restated",
    "OffsetBias, tulu-3-8B-RM, RM-RB2, TRL": CLASSIFIER,
    "tulu-2-70b-uf-mean-rm": "restated",
    "GRM-*-rewardmodel-ft": "restated",
    "gpt2-large-helpful, gpt2-large-harmless": "restated",
    "RewardPreferenceBert": "restated",
    "OpenRLHF": "read: OpenRLHF/OpenRLHF 3c3be62",
    "LLaMA-Factory": "run: hiyouga/LLaMA-Factory ff6d4d1 (`_get_scores`) over huggingface/trl f2cd577",
    "TRL value head": "run: huggingface/trl f2cd577",
    "UltraRM-13b": f"run: {BENCH}",
    "Eurus-RM-7b": "run: a copy of its modeling_eurus_rm.py",
    "Starling-RM": f"run: {BENCH}, both classes",
    "Athene-RM": "run: copies of its card's class, with one BOS where the card's pipeline sends two",
    "Safe RLHF (beaver-7b)": f"read: {BENCH}",
    "InternLM2-reward": f"read: {BENCH}",
    "oasst-rm-2-pythia": f"read: {BENCH}",
    "GRM-*-sftreg": f"read: {BENCH}",
    "INF-ORM-Llama3.1-70B": f"run: {BENCH}",
    "Qwen2.5-Math-RM-72B, WorldPM-72B": "run: a copy of its class, in wang-research-lab/verification 8e25443",
    "Qwen2.5-Math-PRM": "run: a copy of its class, with `make_step_rewards` of its card",
    "Skywork-o1-Open-PRM": "run: SkyworkAI/skywork-o1-prm-inference 719b56b, each step",
    "RLHFlow PRM": "run: the rule of RLHFlow/RLHF-Reward-Modeling fc39179, each step",
    "math-shepherd-mistral-7b-prm": "run: its card's code, as in huggingface/search-and-learn 6f81cac, each step",
    "Llama Guard 1": "read: meta-llama/PurpleLlama 4be64c3 (the probability of the first token)",
    "Llama Guard 2, 3, 4": "read: meta-llama/PurpleLlama 4be64c3; run: one token of transformers' `generate`",
    "ShieldGemma": "run: its card's formula, as in mozilla-ai/any-guardrail 6b9d71e",
    "Qwen3Guard-Gen": "read: QwenLM/Qwen3Guard 6a52eca, which has labels alone; run: one token of `generate`",
    "Granite Guardian 3.0-3.2": "read: ibm-granite/granite-guardian a409be8, which adds other spellings among 20 tokens; run: one token of `generate`",
    "Granite Guardian 3.3": "read: ibm-granite/granite-guardian a409be8, which has labels alone",
    "WildGuard": "run: allenai/wildguard 495b9dc (`WildGuardHF`) for the prompt's ids; it has labels alone",
    "Any yes/no judge": "a rule of this service",
    "Llama-3.1-Nemotron-70B-Reward-HF": "restated; run: one token of `generate`",
    "OpenAssistant deberta-v3-large-v2, electra": "restated",
}
"""How the rule in the tests was checked against its authors' code: `run` on the tiny checkpoint, `read`, or neither."""


def rows() -> dict[str, list[Family]]:
    """The families of each row, in the order of FOUND."""
    return {row: [family for family in FAMILIES if family.row == row] for row in FOUND}


def line(row: str, families: list[Family], declared: list[str | None], difference: str) -> str:
    sources = "; ".join(dict.fromkeys(family.source for family in families))
    needed = ", or ".join("nothing" if each is None else f"`{each}`" for each in dict.fromkeys(declared))
    return f"| {row} | {FOUND[row]} | {needed} | {difference} | {sources} | {COMPARED[row]} |\n"


def render() -> str:
    """Builds, loads and measures all of them: about a minute."""
    table = "| family | what is read | declare | largest difference | where the rule belongs | compared with |\n| --- | --- | --- | --- | --- | --- |\n"
    with tempfile.TemporaryDirectory() as directory:
        for row, families in rows().items():
            built = [family.build(Path(directory) / family.name.replace("/", " ")) for family in families]
            difference = max(each.difference for checkpoint in built for each in measure(checkpoint))
            declared = [checkpoint.declared for checkpoint in built]
            table += line(row, families, declared, f"{difference:.0e}")
    return table


def render_inspected() -> str:
    """What `reward-service inspect` says of five families' checkpoints, without what depends on the machine."""
    text = ""
    with tempfile.TemporaryDirectory() as directory:
        for family in (family for name in INSPECTED for family in FAMILIES if family.name == name):
            built = family.build(Path(directory) / family.name)
            report = inspect(str(built.directory), device="cpu", declared=built.declared)
            option = f" --head '{built.declared}'" if built.declared is not None else ""
            lines = [f"  {label:10}{words}" for label, words in report.lines if label in SHOWN]
            text += "\n".join(
                [f"    $ reward-service inspect DIR{option}  # {family.name}", *(f"    {x}" for x in lines), "", ""]
            )
    return text


def replaced(text: str, number: int, part: str) -> str:
    """The document with what stands between the `number`-th pair of marks replaced."""
    pieces = text.split(BEGIN)
    pieces[number] = part + END + pieces[number].partition(END)[2]
    return BEGIN.join(pieces)


def main() -> None:
    text = replaced(DOCUMENT.read_text(encoding="utf-8"), 1, render())
    DOCUMENT.write_text(replaced(text, 2, render_inspected()), encoding="utf-8")


if __name__ == "__main__":
    main()
