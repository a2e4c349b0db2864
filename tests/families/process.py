"""Process reward models: a score for each step; the score of a text is that of its last step unless declared otherwise."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tests.families.deep_heads import through, two_layers
from tests.families.family import family
from tests.families.reference import (
    Built,
    Conversation,
    Rule,
    Text,
    chat,
    dot,
    log_odds,
    sigmoid,
    states_of,
    templated,
)
from tests.families.tiny import (
    CHATML_WITH_BOS,
    linear,
    make_tokenizer,
    make_trunk,
    save_config,
    save_tensors,
    tensors_of,
    vector,
)
from tests.families.value_heads import language_model


def places(ids: list[int], token: int) -> list[int]:
    return [i for i, each in enumerate(ids) if each == token]


STEPS = "<extra_0>"
SOLUTIONS = [
    chat("Two and two?", f"Two and two are four.{STEPS}So it is four.{STEPS}"),
    chat("The fox?", f"The fox jumps.{STEPS}The dog is lazy.{STEPS}It jumps over the dog.{STEPS}"),
    chat("Tea?", f"Green.{STEPS}"),
    chat("Nothing?", STEPS),
]


@family("Qwen2.5-Math-PRM", source="Qwen/Qwen2.5-Math-PRM-7B README.md (make_step_rewards)")
def qwen_prm(directory: Path) -> Built:
    """softmax[1] of two logits at each <extra_0>; the score is its log-odds."""
    make_tokenizer(adds_bos=False, special=[STEPS], eos="<|im_end|>").save_pretrained(directory)
    trunk, head = make_trunk("qwen2", seed=90), two_layers("score", 32, 2, seed=91)
    auto_map = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    save_config(directory, "qwen2", "Qwen2ForProcessRewardModel", auto_map=auto_map)
    save_tensors(directory, {**tensors_of(trunk), **head}, shards=2)

    def step(ids: list[int], index: int, *, late: int = 0, sign: int = 1) -> float:
        logits = through(head, states_of(trunk, ids))[places(ids, 5)[index] + late]
        return sign * log_odds(logits, [1], [0])

    wrong: dict[str, Rule] = {
        "the first class": lambda ids: step(ids, -1, sign=-1),
        "a token too early": lambda ids: step(ids, -1, late=-1),
    }
    return Built(directory, lambda ids: step(ids, -1), wrong, templated(directory), conversations=SOLUTIONS)


@family("Qwen2.5-Math-PRM, least step", row="Qwen2.5-Math-PRM", source="Qwen/Qwen2.5-Math-PRM-7B README.md")
def qwen_prm_min(directory: Path) -> Built:
    built = qwen_prm(directory)
    trunk, head = make_trunk("qwen2", seed=90), two_layers("score", 32, 2, seed=91)

    def least(ids: list[int]) -> float:
        logits = through(head, states_of(trunk, ids))
        return min(log_odds(logits[i], [1], [0]) for i in places(ids, 5))

    built.rule, built.wrong = least, {"the first class": lambda ids: -least(ids)}
    built.declared = '{"position": {"at": "<extra_0>", "reduce": "min"}}'
    return built


def question_and_steps(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids as Skywork's `prepare_input` makes them, and where its reward flags are 1: a newline behind each line of the answer."""
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    ids = list(tokenizer.encode(f"{tokenizer.bos_token}{question}\n", add_special_tokens=False))
    flags: list[int] = []
    for line in answer.split("\n"):
        ids += [*(tokenizer.encode(line, add_special_tokens=False) if line else []), newline]
        flags.append(len(ids) - 1)
    return ids, flags


LINES = [
    chat("Two and two?", "Two and two are four."),
    chat("The fox?\nWhich one?\n\n", "The fox jumps.\n\nThe dog is lazy.\n"),
    chat("Nothing?", ""),
    chat("Step 1:\nfox", "It is + or -\n\n\n+ - safe"),
]


@family(
    "Skywork-o1-Open-PRM", source="SkyworkAI/skywork-o1-prm-inference model_utils/prm_model.py, model_utils/io_utils.py"
)
def skywork_prm(directory: Path) -> Built:
    """sigmoid of a linear head at the newline behind each line of the response. The tokenizer's chat template is not used."""
    make_tokenizer(adds_bos=False).save_pretrained(directory)
    trunk, tensors = language_model(directory, "qwen2", "Qwen2ForPrmModel", seed=96)
    weight, bias = linear(1, 32, seed=97), vector(1, seed=98)
    save_tensors(directory, {**tensors, "v_head.summary.weight": weight, "v_head.summary.bias": bias})
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)

    def output(ids: list[int], index: int = -1) -> float:
        return float(dot(states_of(trunk, ids), weight, bias)[index, 0])

    def steps(conversation: Conversation) -> list[float]:
        (_, question), (_, answer) = conversation.turns
        ids, flags = question_and_steps(tokenizer, question, answer)
        return [sigmoid(output(ids, flag)) for flag in flags]

    def text(conversation: Conversation) -> list[int]:
        (_, question), (_, answer) = conversation.turns
        return question_and_steps(tokenizer, question, answer)[0]

    wrong: dict[str, Rule] = {
        "a token too early": lambda ids: sigmoid(output(ids, -2)),
        "no sigmoid": output,
    }
    return Built(directory, lambda ids: sigmoid(output(ids)), wrong, text, conversations=LINES, steps=steps)


def step_judge(
    directory: Path, declared: str, *, seed: int, late: int, token: str, conversations: list[Conversation]
) -> Built:
    """log p("+") - log p("-") as the language model predicts it `late` tokens after each `token`.

    In messages a step is a user turn and the assistant's turn behind it, and is scored at the end of a conversation that ends
    with it.
    """
    trunk, tensors = language_model(directory, "llama", "LlamaForCausalLM", seed=seed)
    save_tensors(directory, tensors, shards=2)
    text: Text = templated(directory)
    plus, minus, mark = (single(text, each) for each in ("+", "-", token))  # behind a space where one is added

    def at(offset: int, sign: int = 1) -> Rule:
        def rule(ids: list[int]) -> float:
            state = states_of(trunk, ids)[places(ids, mark)[-1] + offset]
            return sign * log_odds(dot(state, tensors["lm_head.weight"]), [plus], [minus])

        return rule

    def steps(conversation: Conversation) -> list[float]:
        if conversation.text is not None:
            ids = text(conversation)
            states = states_of(trunk, ids)[places(ids, mark)]
            return [log_odds(dot(state, tensors["lm_head.weight"]), [plus], [minus]) for state in states]
        ends = range(2, len(conversation.turns) + 1, 2)
        return [at(late)(text(Conversation(conversation.turns[:end]))) for end in ends]

    wrong = {"the other sign": at(late, -1), "a token off": at(-1 - late)}
    return Built(directory, at(late), wrong, text, declared=declared, conversations=conversations, steps=steps)


def single(text: Text, token: str) -> int:
    ids = text(Conversation(text=token))
    assert len(ids) <= 2, (token, ids)  # a BOS before it
    return ids[-1]


@family("RLHFlow PRM", source="RLHFlow/RLHF-Reward-Modeling math-rm/prm_evaluate.py (logits[:, -3, candidate_tokens])")
def rlhflow(directory: Path) -> Built:
    """The user's turns are steps, the assistant's "+"; read where the "+" is predicted."""
    make_tokenizer(template=CHATML_WITH_BOS).save_pretrained(directory)
    steps = [
        chat("Two and two? They are four.", "+"),
        chat("Two? Two.", "+", "So it is four.", "+"),
        chat("+", "+", "2+\n+ is", "+", "So 2+2+", "+"),
    ]
    return step_judge(directory, "rlhflow-prm", seed=100, late=-1, token="+", conversations=steps)


@family("math-shepherd-mistral-7b-prm", source="peiyi9979/math-shepherd-mistral-7b-prm README.md (step_tag_id)")
def math_shepherd(directory: Path) -> Built:
    """Plain text, steps that end in " ки"; read at that token itself."""
    make_tokenizer(template=None, spaces_first=True).save_pretrained(directory)
    steps = [Conversation(text=text) for text in ("Two? Step 1: two ки", "Tea? Step 1: fox ки\nStep 2: a dog ки")]
    return step_judge(directory, "math-shepherd", seed=102, late=0, token="ки", conversations=steps)
