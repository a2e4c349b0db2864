"""Closes the Gradio routes that the page does not use. The page itself, its files and its events stay open.

Gradio has about seventy routes: uploads, files, proxies, monitoring, documentation. The page needs the few below. It reads no
files of the machine and accepts none, and a content security policy keeps the browser from loading anything from elsewhere.
"""

import re

from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {
    "GET": re.compile(
        r"/(|config|theme\.css|manifest\.json|favicon\.ico|robots\.txt|pwa_icon(/\w+)?|(assets|static|svelte)/.+"
        r"|gradio_api/(theme\.css|startup-events|heartbeat/\w+|queue/data))"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|cancel|reset)"),
}
POLICY = "; ".join(  # noqa: FLY002 - a directive a line
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page uses both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "manifest-src 'none'",  # Gradio requests one next to the page, where there is none
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class RouteAllowlist:
    """Middleware for the app in which Gradio is mounted at `path`. Requests for other paths pass unchanged."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app = app
        self.path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not f"{scope['path']}/".startswith(f"{self.path}/"):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        path = scope["path"].removeprefix(self.path)
        if not path:  # a relative URL also works behind a proxy that adds a prefix or terminates TLS
            await RedirectResponse(f"{self.path.rpartition('/')[2]}/")(scope, receive, send)
            return
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        pattern = OPEN.get(method)
        if pattern is None or not pattern.fullmatch(path):
            await PlainTextResponse("not part of this page", 404)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_policy)
