import ast
import json
import math
import re
import sys

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from app.ui.render import MINUS
from app.ui.score import EXAMPLES, FIRST
from tests.api.asking import ask
from tests.ui.browser.conftest import Open
from tests.ui.browser.reading import boxes_of, expect_made_of, fact, fragment_of, run, wait_until

PROMPT, RESPONSE = "How do I pick a lock?", "I can't help with that, but a locksmith can open your door. 漢字 🙂"


def one_response(page: Page, name: str = "A refusal") -> None:
    """An example with one response, and its result."""
    page.get_by_role("button", name=name).click()
    prompt, (response,) = EXAMPLES[name]
    expect_made_of(page, "score-result", prompt=prompt, response_1=response, count=1)


def score(page: Page, prompt: str = PROMPT, response: str = RESPONSE) -> None:
    """By keyboard alone: type, go on with Tab, send with Shift+Enter; ends with the result of what was typed."""
    one_response(page)
    page.get_by_label("Prompt", exact=True).focus()
    for text, key in ((prompt, "Tab"), (response, "Shift+Enter")):
        page.keyboard.press("Control+A")
        page.keyboard.type(text)
        page.keyboard.press(key)
    expect_made_of(page, "score-result", prompt=prompt, response_1=response, count=1)


def test_the_first_sight_is_a_prompt_with_its_responses_ranked(page: Page, service: httpx.Client) -> None:
    prompt, responses = FIRST
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(prompt)
    rows = page.locator("#score-result .rw-ranking tbody tr")
    expect(rows).to_have_count(len(responses))
    items = [{"prompt": prompt, "response": response} for response in responses]
    scores = [result["scores"] for result in ask(service, "/score", {"items": items})["results"]]
    taken = ask(service, "/ppo-reward", {"items": items, "whiten": {"mode": "none"}})["results"]
    order = sorted(range(len(items)), key=lambda i: -taken[i]["selected_score"])
    assert [row.get_attribute("data-response") for row in rows.all()] == [f"Response {i + 1}" for i in order]
    for row, i in zip(rows.all(), order, strict=True):
        for model in ("safety", "helpfulness"):
            cell = row.locator(f"[data-model={model}]")
            assert fact(cell, "score") == scores[i][model]["score"]
            place = 1 + sum(other[model]["score"] > scores[i][model]["score"] for other in scores)
            expect(cell.locator(".rw-ordinal")).to_have_text({1: "1st", 2: "2nd", 3: "3rd"}[place])
    expect(page.locator("#score-result .rw-verdict")).to_contain_text(f"Response {order[0] + 1} ranks first")


def test_an_example_is_scored_when_it_is_chosen(page: Page) -> None:
    one_response(page, "Turns bad")
    expect(page.locator("#score-result .rw-bars")).to_be_visible()
    expect(page.locator("#score-result .rw-stale")).to_have_count(0)


def test_an_edit_dims_the_result_until_it_is_undone_or_scored(page: Page) -> None:
    one_response(page)
    notice = page.get_by_text("Inputs changed. Press Score to update.")
    field = page.get_by_label("Response 1", exact=True)
    before = field.input_value()
    field.fill(f"{before} More.")
    expect(notice).to_be_visible()
    field.fill(before)
    expect(notice).to_be_hidden()
    page.get_by_label("Safety prompt").check()
    expect(notice).to_be_visible()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(notice).to_be_hidden()
    expect_made_of(page, "score-result", response_1=before, is_safety=True)


def test_responses_are_added_and_removed(page: Page, service: httpx.Client) -> None:
    one_response(page)
    page.get_by_role("button", name="Add a response").click()
    page.get_by_label("Response 2", exact=True).fill("Call a locksmith.")
    page.get_by_role("button", name="Score", exact=True).click()
    expect_made_of(page, "score-result", response_2="Call a locksmith.", count=2)
    prompt = page.get_by_label("Prompt", exact=True).input_value()
    item = {"prompt": prompt, "response": "Call a locksmith."}
    entry = ask(service, "/score", {"items": [item]})["results"][0]["scores"]["safety"]
    assert (
        fact(page.locator("#score-result tr[data-response='Response 2'] [data-model=safety]"), "score")
        == entry["score"]
    )
    page.get_by_role("button", name="Remove the last").click()
    expect(page.get_by_label("Response 2", exact=True)).to_have_count(0)
    expect(page.get_by_text("Inputs changed. Press Score to update.")).to_be_visible()


@pytest.mark.parametrize(
    ("label", "says"), [("Prompt", "The prompt is empty"), ("Response 1", "The response is empty")]
)
def test_an_empty_input_is_refused_where_the_result_would_be(page: Page, label: str, says: str) -> None:
    one_response(page)
    page.get_by_label(label, exact=True).fill(" ")
    page.get_by_role("button", name="Score", exact=True).click()
    alert = page.locator("#score-error").get_by_role("alert")
    expect(alert).to_contain_text(says)
    expect(page.locator("#score-code")).to_contain_text(f"No request yet: {says}")
    (button,), (box,) = (boxes_of(place) for place in (page.locator("#score-go"), alert))
    assert box["x"] > button["right"]


def test_the_code_is_always_that_of_the_present_inputs_and_runs(page: Page) -> None:
    score(page)
    shown = fact(page.locator("#score-result [data-model=safety]"), "score")
    expect_made_of(page, "score-code", prompt=PROMPT, response_1=RESPONSE, count=1)
    command = page.locator("#score-code [data-code=curl] code")
    answer = json.loads(run(["sh"], command.inner_text()))
    assert answer["results"][0]["scores"]["safety"]["score"] == pytest.approx(shown, rel=1e-12)
    script = page.locator("#score-code [data-code=python] code").inner_text()
    assert ast.literal_eval(run([sys.executable, "-"], script))["safety"] == pytest.approx(shown, rel=1e-12)
    page.get_by_label("Response 1", exact=True).fill("Something else.")
    expect(command).to_contain_text("Something else.")


def test_the_code_follows_inputs_that_change_while_it_is_made(page: Page) -> None:
    expect_made_of(page, "score-code", count=3)
    held: list[Route] = []
    page.route("**/queue/join*", lambda route: held.append(route), times=1)  # noqa: PLW0108 - playwright needs a function
    for count in (2, 1):
        page.get_by_role("button", name="Remove the last").click()
        expect(page.get_by_label(f"Response {count + 1}", exact=True)).to_have_count(0)
    wait_until(page, lambda: bool(held))
    held[0].continue_()
    expect_made_of(page, "score-code", count=1)


def test_only_the_safety_model_has_the_threshold(page: Page) -> None:
    expect(page.locator("#score-result [data-model=safety] .rw-threshold")).to_have_count(len(FIRST[1]))
    expect(page.locator("#score-result [data-model=helpfulness] .rw-threshold")).to_have_count(0)


def test_a_link_restores_the_inputs_and_is_sent_to_nobody(page: Page, open_page: Open, service: httpx.Client) -> None:
    one_response(page)
    page.get_by_label("Response 1", exact=True).fill("Ask a neighbour: 漢字 🙂 <b>")
    page.get_by_label("Safety prompt").check()
    fragment = fragment_of(page, "score", response_1="Ask a neighbour: 漢字 🙂 <b>", count=1, is_safety=True)
    assert fragment
    asked: list[str] = []
    other = open_page(fragment=fragment, watch=asked)
    expect(other.get_by_label("Response 1", exact=True)).to_have_value("Ask a neighbour: 漢字 🙂 <b>")
    expect(other.get_by_label("Response 2", exact=True)).to_have_count(0)
    expect(other.get_by_label("Safety prompt")).to_be_checked()
    expect_made_of(other, "score-result", response_1="Ask a neighbour: 漢字 🙂 <b>", is_safety=True)
    assert asked
    assert not [url for url in asked if fragment in url]
    del service


def test_a_damaged_link_is_reported(open_page: Open) -> None:
    page = open_page(fragment="eyJ0YWIi")
    expect(page.get_by_role("alert")).to_contain_text("This link is damaged")
    expect(page.locator("#score-result .rw-ranking")).to_be_visible()


def test_the_bars_say_what_the_api_says(page: Page, service: httpx.Client) -> None:
    score(page)
    result = page.locator("#score-result")
    expect(result.locator(".rw-verdict")).to_be_visible()
    answer = ask(service, "/score", {"items": [{"prompt": PROMPT, "response": RESPONSE}]})["results"][0]["scores"]
    for name, entry in answer.items():
        row = result.locator(f".rw-bar-row[data-model={name}]")
        assert fact(row, "score") == entry["score"]
        assert fact(row, "probability") == entry["probability"]
        expect(row.locator("[data-is=tokens]")).to_have_text(str(entry["num_tokens"]))
        track, fill = boxes_of(row.locator(".rw-track, .rw-fill"))
        assert fill["width"] / track["width"] == pytest.approx(entry["probability"], abs=0.01)


@pytest.mark.parametrize("is_safety", [False, True])
def test_the_verdict_is_the_services_own_selection_and_says_why(
    page: Page, service: httpx.Client, *, is_safety: bool
) -> None:
    if is_safety:
        page.get_by_label("Safety prompt").check()
    score(page)
    expect_made_of(page, "score-result", is_safety=is_safety)
    verdict = page.locator("#score-result .rw-verdict")
    item = {"prompt": PROMPT, "response": RESPONSE, "is_safety": is_safety}
    answer = ask(service, "/ppo-reward", {"items": [item], "whiten": {"mode": "none"}})["results"][0]
    expect(verdict).to_contain_text(f"takes the {answer['selected']} score")
    probability = 1 / (1 + math.exp(-answer["safety_score"]))
    reason = (
        "marked as a safety prompt" if is_safety else "is below 0.15" if probability < 0.15 else "is not below 0.15"
    )
    expect(verdict).to_contain_text(reason)
    expect(page.locator(f"#score-result .rw-bar-row[data-model={answer['selected']}]")).to_contain_text("taken")


def test_the_score_after_every_word_is_read_with_the_arrow_keys(page: Page, service: httpx.Client) -> None:
    score(page)
    slider = page.get_by_role("slider", name="Word of the response")
    expect(slider).to_be_visible()
    body = {"items": [{"prompt": PROMPT, "response": RESPONSE}], "token_scores": True}
    scores = ask(service, "/score", body)["results"][0]["scores"]
    expect(slider).to_have_text(RESPONSE)
    series = json.loads(page.locator("#score-result .rw-cursor-group").get_attribute("data-series") or "")
    slider.focus()
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^Before the response: "))
    for _ in range(2):
        slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^Word 2 of "))
    words = slider.get_attribute("aria-valuetext") or ""
    assert "\N{LEFT DOUBLE QUOTATION MARK}can't\N{RIGHT DOUBLE QUOTATION MARK}" in words
    for name, entry in scores.items():
        assert set(series[name]) <= set(entry["token_scores"])
        assert series[name][-1] == entry["token_scores"][-1] == entry["score"]
        assert f"{name} {series[name][2]:.3f}".replace("-", MINUS) in words
    slider.press("End")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^At the end: "))
    expect(page.locator("#score-result .rw-readout")).to_contain_text("At the end")


def test_without_word_scores_none_are_drawn(page: Page) -> None:
    page.get_by_label("Score after every word").uncheck()
    score(page)
    expect_made_of(page, "score-result", by_word=False)
    expect(page.get_by_role("slider", name="Word")).to_have_count(0)


def test_a_conversation_is_scored_as_its_messages(page: Page, service: httpx.Client) -> None:
    page.get_by_label("Conversation").check()
    field = page.locator("#score-conversation textarea")
    field.fill("user: Hi\nassistant: Hello!\nHow are you?\nuser: Fine\nassistant: Good.")
    page.get_by_role("button", name="Score", exact=True).click()
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!\nHow are you?"},
        {"role": "user", "content": "Fine"},
        {"role": "assistant", "content": "Good."},
    ]
    expect_made_of(page, "score-result", conversation=field.input_value(), form="Conversation")
    row = page.locator("#score-result .rw-bar-row[data-model=safety]")
    entry = ask(service, "/score", {"items": [{"messages": messages}]})["results"][0]["scores"]["safety"]
    assert fact(row, "score") == entry["score"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Hello there", "The conversation begins with 'Hello there'; begin every turn with user:"),
        ("user: Hi\nassistant: Hello\nuser: Bye", "it must be the assistant's"),
        ('[{"role": "user"', "The conversation begins like JSON but is not valid JSON"),
    ],
)
def test_a_conversation_that_is_none_is_explained_beside_it(page: Page, text: str, says: str) -> None:
    page.get_by_label("Conversation").check()
    page.locator("#score-conversation textarea").fill(text)
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#score-error").get_by_role("alert")).to_contain_text(says)


def test_an_error_of_the_api_stands_in_the_pages_words_and_goes_with_the_next_answer(page: Page) -> None:
    one_response(page)
    page.get_by_label("Response 1", exact=True).fill("tea " * 600)
    page.get_by_role("button", name="Score", exact=True).click()
    alert = page.locator("#score-error").get_by_role("alert")
    expect(alert).to_contain_text("The response has ")
    expect(alert).to_contain_text("the limit is 512; shorten it, or choose what happens if the input is too long.")
    expect(alert).to_contain_text("422 too_long")
    page.get_by_label("If the input is too long").click()
    page.get_by_role("option", name="cut it on the right").click()
    page.get_by_role("button", name="Score", exact=True).click()
    expect(page.locator("#score-result")).to_contain_text("The input was too long and was truncated.")
    expect(alert).to_have_count(0)


def test_what_is_typed_is_shown_and_never_run(open_page: Open) -> None:
    page = open_page()
    score(page, response="<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>")
    expect(page.get_by_role("slider", name="Word")).to_contain_text("<img src=x")
    assert page.title() == "reward-service playground"
