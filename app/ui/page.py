"""The page as a whole: its head, its tabs, and how it is mounted."""

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import Response

from app import __version__
from app.http.application import Application
from app.service import Service
from app.settings import PAGE_PATH
from app.ui import compare, evaluate, live, ppo_reward, score
from app.ui.allowlist import RouteAllowlist
from app.ui.client import Client, RefusedError
from app.ui.parts import UIContext
from app.ui.render import render
from app.ui.theme import ICON, SCRIPT, STYLE, theme

TABS = {
    "Score": ("score", score),
    "Compare": ("compare", compare),
    "PPO reward": ("ppo", ppo_reward),
    "Evaluate": ("evaluate", evaluate),
}
"""By label, what each tab's form calls itself, and its module."""
LIVE = "Live"


def mount_page(app: Application, service: Service) -> None:
    """Adds the page to the app, and closes the Gradio routes that it does not need."""
    keys = service.settings.api_keys
    page = build(Client(app, keys[0] if keys else None), UIContext(service))
    gr.mount_gradio_app(
        app.api,
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
    app.api.add_middleware(RouteAllowlist, path=PAGE_PATH)
    app.api.add_route(
        "/favicon.ico", icon, include_in_schema=False
    )  # browsers request it regardless of the page's own icon


async def icon(_: Request) -> Response:
    return Response(ICON, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


def build(client: Client, context: UIContext) -> gr.Blocks:
    with gr.Blocks(title="reward-service playground", analytics_enabled=False) as page:
        head = gr.HTML(render("head.html", info=None, message="", version=__version__), elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            tabs = []
            for label, (name, tab) in TABS.items():
                with gr.Tab(label, id=label, elem_id=f"{name}-tab", render_children=True) as opened:
                    tab.build(page, opened, client, context)
                tabs.append(opened)
            with gr.Tab(LIVE, id=LIVE, elem_id="live-tab") as shown:
                timer = live.build(page, client, context)
        # In the browser only: server responses that arrive out of order would leave the timer in the previous tab's state.
        shown.select(js=setting(active=True), outputs=timer, **context.quiet)
        for other in tabs:
            other.select(js=setting(active=False), outputs=timer, **context.quiet)
        page.load(partial(render_status, client, context), outputs=head, **context.quiet)
    page.queue(default_concurrency_limit=None, api_open=False)
    return page


def setting(**properties: Any) -> str:
    """A JavaScript function that sets these properties on an event's output."""
    return f"() => ({json.dumps(gr.update(**properties))})"


async def render_status(client: Client, context: UIContext) -> AsyncIterator[str]:
    """The page's header: which models are loaded, or why none is."""
    yield render("head.html", info=None, message="The models are loading.", version=__version__)
    await context.until_loaded()
    try:
        yield render("head.html", info=await client.get("/info"), message="", version=__version__)
    except RefusedError as error:
        yield render("head.html", info=None, message=error.message, version=__version__)
