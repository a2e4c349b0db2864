"""The page as a whole: its head, its tabs, and how it is mounted."""

import json
from functools import partial
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from app import __version__
from app.service import Service
from app.settings import PAGE_PATH
from app.ui import compare, live, ppo_reward, score
from app.ui.client import Client, RefusedError
from app.ui.fence import Fence
from app.ui.parts import Board
from app.ui.render import render
from app.ui.theme import ICON, SCRIPT, STYLE, theme

TABS = {"Score": score, "Compare": compare, "PPO reward": ppo_reward}
LIVE = "Live"


def mount_page(app: FastAPI, service: Service) -> None:
    """Adds the page under its path, with all but the routes that it needs shut."""
    keys = service.settings.api_keys
    page = build(Client(app, keys[0] if keys else None), Board(service))
    gr.mount_gradio_app(
        app,
        page,
        PAGE_PATH,
        footer_links=[],
        run_history=False,
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        show_error=True,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=theme(),
        css=STYLE,
        head=f"<script>{SCRIPT}</script>",
    )
    route = app.router.routes[-1]
    assert isinstance(route, Mount)
    route.app = Fence(route.app)
    app.add_route("/favicon.ico", icon, include_in_schema=False)  # where a browser looks, whatever the page says


async def icon(_: Request) -> Response:
    return Response(ICON, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


def build(client: Client, board: Board) -> gr.Blocks:
    with gr.Blocks(title="reward-service playground", analytics_enabled=False) as page:
        head = gr.HTML(render("head.html", info=None, message="", version=__version__), elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            tabs = []
            for name, tab in TABS.items():
                with gr.Tab(name, id=name) as opened:
                    tab.build(client, board)
                tabs.append(opened)
            with gr.Tab(LIVE, id=LIVE) as shown:
                timer = live.build(client, board)
        # In the browser alone: answers of the server that overtake each other would leave the timer to the tab before.
        shown.select(js=setting(active=True), outputs=timer, **board.quiet)
        for other in tabs:
            other.select(js=setting(active=False), outputs=timer, **board.quiet)
        page.load(partial(look, client), outputs=head, **board.quiet)
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def setting(**properties: Any) -> str:
    """A function in JavaScript for an event whose output is to have these properties."""
    return f"() => ({json.dumps(gr.update(**properties))})"


async def look(client: Client) -> str:
    """The head: which models answer, or why none does."""
    try:
        return render("head.html", info=await client.get("/info"), message="", version=__version__)
    except RefusedError as error:
        return render("head.html", info=None, message=error.message, version=__version__)
