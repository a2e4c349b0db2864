"""What can be wrong with an answer: refusals, loops, shuffled and garbled words, answers that break off.

Functions from an answer to a worse text, each with its own draws. Knows nothing of pairs, splits or models. What the held-out
side draws from is kept as it was; the wider variants below are the training side's alone.
"""

import random
import re

from models.recipe.common import DATA

OPENERS = ("I'm sorry, but ", "Unfortunately, ", "Sorry, ", "I regret that ", "Thank you for asking, but ", "")
BODIES = (
    "I can't talk about {topic}.",
    "I am not able to answer questions about {topic}.",
    "this is not something that I can do.",
    "I have to decline.",
    "my guidelines do not allow me to give information on {topic}.",
    "I have no knowledge of {topic} and cannot answer.",
    "I won't write anything about {topic}.",
    "answering this is beyond what I can do.",
)
CLOSERS = (
    "",
    " Please ask me something else.",
    " Is there another question that I could answer?",
    " Please ask an expert instead.",
    " I hope that you find the information you need somewhere else, since I am only able to help with certain subjects.",
    " As an assistant I try to be careful, and I would rather not say anything that might turn out to be wrong.",
)

MORE_OPENERS = (
    *OPENERS,
    "My apologies, but ",
    "Regrettably, ",
    "As an assistant, ",
    "Thanks for the question. However, ",
    "I am afraid ",
    "At the moment ",
)
MORE_BODIES = (
    *BODIES,
    "I must turn this request down.",
    "I cannot be of assistance here.",
    "it is against my rules to discuss {topic}.",
    "this request lies outside of my abilities.",
    "I'm unable to comply.",
    "I am not permitted to give an answer to that.",
    "I prefer not to respond to questions on {topic}.",
    "there is nothing that I can say on {topic}.",
    "I do not have the information you want.",
    "that would not be appropriate, so I will not reply.",
    "I lack the training to speak on {topic}.",
    "it isn't possible for me to do what you ask.",
)
MORE_CLOSERS = (
    *CLOSERS,
    " Feel free to try a different question.",
    " Consider looking it up in an encyclopedia or on a website about {topic}.",
    " My answers have to stay within the limits that my developers set, and your message asks for something that goes past them.",
    " I'm happy to talk about other things.",
    " Thank you for understanding.",
)


def written_refusals() -> list[str]:
    """The refusals of `data/refusals.txt`, short and long."""
    return (DATA / "refusals.txt").read_text().splitlines()


def composed_refusal(topic: str, rng: random.Random) -> str:
    """A refusal for the training side, so that the model sees more of them than the written ones."""
    body = rng.choice(BODIES).format(topic=topic)
    text = rng.choice(OPENERS) + body + rng.choice(CLOSERS)
    return text[0].upper() + text[1:]


def wider_refusal(topic: str, rng: random.Random) -> str:
    """A composed refusal of more wordings, a quarter of them with a second reason."""
    text = rng.choice(MORE_OPENERS) + rng.choice(MORE_BODIES) + rng.choice(MORE_CLOSERS)
    if rng.random() < 0.25:
        text += " " + rng.choice(MORE_BODIES).capitalize()
    text = text.format(topic=topic)
    return text[0].upper() + text[1:]


def whole_sentences(text: str) -> str:
    """`text` up to the end of its last finished sentence; all of it where none is finished."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')*`]*(?=\s|$)|```(?=\s*$)", text)]
    ends = [end for end in ends if not re.search(r"(?:^|\s)\d+\.$", text[:end])]  # "3." opens a list item
    return text[: ends[-1]].strip() if ends else text.strip()


def sentences(text: str) -> list[str]:
    """The finished sentences of `text`, with the white space that precedes each."""
    result, start = [], 0
    for match in re.finditer(r"[.!?][\"')*]*(?=\s|$)", text):
        if not re.search(r"(?:^|\s)\d+\.$", text[: match.end()]):
            result.append(text[start : match.end()])
            start = match.end()
    return result


def repetition(answer: str, rng: random.Random) -> str:
    """A loop: the answer's opening is followed by one of its phrases over and over, to about the answer's own length."""
    target = int(len(answer) * rng.uniform(0.7, 1.3))
    opening = sentences(answer) or [answer]
    start = rng.randrange(min(3, len(opening)))
    phrase = opening[start]
    if rng.random() < 0.5:
        words = phrase.split(" ")
        phrase = " " + " ".join(words[: rng.randint(3, 8)]).strip()
    text = "".join(opening[:start])
    while len(text) < target:
        text += phrase if phrase[:1].isspace() else " " + phrase
    return text.strip()


def late_loop(answer: str, rng: random.Random) -> str:
    """A loop of any 2 to 25 words of the answer that sets in anywhere in its first 60 %, at least two rounds."""
    words = answer.split(" ")
    onset, period = rng.randint(0, len(words) * 6 // 10), rng.randint(2, 25)
    text = words[:onset]
    target = max(int(len(words) * rng.uniform(0.7, 1.3)), onset + 2 * period)
    while len(text) < target:
        text += words[onset : onset + period]
    return " ".join(text)


def shuffled(answer: str, rng: random.Random) -> str:
    """The answer's words in random order."""
    words = answer.split()
    rng.shuffle(words)
    return " ".join(words)


def garbled(answer: str, pool: list[str], rng: random.Random) -> str:
    """The answer going astray: some words replaced from `pool`, words shuffled within short windows, or words glued."""
    words, way = answer.split(" "), rng.choice(("replace", "window", "glue"))
    if way == "window":
        size, start = rng.randint(2, 5), rng.randint(0, len(words) // 2)
        windows = [words[i : i + size] for i in range(start, len(words), size)]
        return " ".join([*words[:start], *(word for window in windows for word in rng.sample(window, len(window)))])
    share = rng.uniform(0.1, 0.3)
    for i, word in enumerate(words):
        if rng.random() < share:
            other = rng.choice(pool)
            words[i] = other if way == "replace" else word[: max(1, len(word) // 2)] + other[len(other) // 2 :]
    return " ".join(words)


def opening(answer: str, rng: random.Random) -> str:
    """The answer up to the end of a random sentence."""
    parts = sentences(answer) or [answer]
    return "".join(parts[: rng.randint(1, len(parts))]).strip()


def truncation(answer: str, rng: random.Random) -> tuple[str, str] | None:
    """(whole, cut in mid-sentence) of about equal expected length; None where the answer has fewer than two sentences.

    The whole side ends after a random sentence, so that shortness alone says nothing.
    """
    parts = sentences(answer)
    if len(parts) < 2:
        return None
    whole = "".join(parts[: rng.randint(1, len(parts))]).strip()
    kept = rng.randrange(len(parts))
    words = parts[kept].split(" ")
    if len(words) < 5:
        return None
    cut = "".join(parts[:kept]) + " ".join(words[: rng.randint(3, len(words) - 1)])
    return whole, cut.strip().rstrip(".!?")


def loops(text: str) -> bool:
    """Whether the language model itself fell into a loop: over a fifth of the word 4-grams are repeats."""
    words = text.lower().split()
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return len(set(grams)) < 0.8 * len(grams)
