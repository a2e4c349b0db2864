"""The playground of a service with further models, or without the two that Llama 2 selects between."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.checkpoints.model_settings import ModelSettings
from app.main import create_app
from app.settings import Settings
from app.ui.batch import scored
from app.ui.client import Client
from app.ui.compare import body_of, compare
from app.ui.live import render_status
from app.ui.parts import UIContext
from app.ui.ranking import Asked, score
from tests.models import make_model

TEA = {"prompt": "How long should green tea steep?", "response": "Two to three minutes."}
PAIR = (TEA["prompt"], TEA["response"], "tea")


def seen_by(settings: Settings, look: Callable[[Client, UIContext], Awaitable[str]]) -> str:
    """What `look` renders from a service with these settings."""

    async def run() -> str:
        app = create_app(settings)
        async with app.lifespan():
            service: Any = app.state.service
            await service.wait_until_ready()
            return await look(Client(app, None), UIContext(service))

    return asyncio.run(run())


@pytest.fixture
def further(tmp_path: Path) -> dict[str, ModelSettings]:
    return {
        name: ModelSettings(source=str(make_model(tmp_path / name, seed=seed)))
        for name, seed in (("maths", 6), ("card", 7))
    }


async def score_page(client: Client, context: UIContext) -> str:
    asked = Asked(["The response"], [TEA["response"]], [TEA], is_safety=False, truncation="error", by_word=True)
    return await score(client, context, asked, made_from={})


def test_the_score_tab_shows_every_models_score(
    further: dict[str, ModelSettings], safety_dir: Path, helpfulness_dir: Path
) -> None:
    settings = Settings(
        _env_file=None, models=further, safety_model=str(safety_dir), helpfulness_model=str(helpfulness_dir)
    )
    page = seen_by(settings, score_page)
    for name in ("safety", "helpfulness", "maths", "card"):
        assert f'data-model="{name}"' in page
        assert f'data-colour="{name}"' in page
    assert "Llama 2 takes the" in page
    assert '<span class="rw-model rw-further-' in page


def test_without_the_roles_the_score_tab_has_nothing_to_select(further: dict[str, ModelSettings]) -> None:
    page = seen_by(Settings(_env_file=None, models=further), score_page)
    assert "safety and helpfulness, are not both loaded" in page
    assert 'data-model="maths"' in page
    assert 'data-colour="maths"' in page
    assert 'data-colour="safety"' not in page


def test_the_compare_and_the_live_tab_take_any_model(further: dict[str, ModelSettings]) -> None:
    settings = Settings(_env_file=None, models=further)

    async def both(client: Client, context: UIContext) -> str:
        compared = await compare(client, body_of((*PAIR, "", "large", "card")), made_from={})
        status, _ = await render_status(client, context, [], 0.0)
        return compared + status

    page = seen_by(settings, both)
    assert "model agrees" in page or "model disagrees" in page
    assert "card" in page


def test_scores_of_further_models_stay_with_an_item_that_is_sent_again() -> None:
    result = {"safety_score": 1.0, "helpfulness_score": None, "scores": {"maths": 2.0}}
    assert scored([dict(TEA)], [result]) == [{"safety_score": 1.0, "scores": {"maths": 2.0}}]
    assert scored([dict(TEA)], [result | {"scores": None}]) == [{"safety_score": 1.0}]
