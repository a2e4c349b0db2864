"""`/docs` and `/redoc`: FastAPI's pages, with scripts from this machine and only relative URLs.

FastAPI's own pages load their scripts from a public CDN, and request `/openapi.json` at the host's root, where a proxy with a
path prefix has another service.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse

from app.errors import NotFoundError

SCHEMA_PATH = "/openapi.json"
BROWSER_PATHS = ("/docs", "/redoc", SCHEMA_PATH)
"""Paths that people open in a browser, which prompts for the key with HTTP Basic."""
SERVERS = [{"url": ".", "description": "this service"}]
"""Relative to the document's own URL, so that it works with any path prefix."""
TAGS = [
    {"name": "rewards", "description": "Scores, preference losses and PPO rewards: the service's own routes."},
    {"name": "operation", "description": "Is it alive, is it ready, what does it serve; metrics; reload."},
    {"name": "compatibility", "description": "Routes of other servers, so that their clients work unchanged."},
]
KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "One of REWARD_API_KEYS."},
    "basic": {"type": "http", "scheme": "basic", "description": "Any user name; one of REWARD_API_KEYS as password."},
}
KEYLESS_PATHS = ("/health", "/ready", "/ping")
FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}


def is_for_browser(path: str) -> bool:
    return path.startswith("/docs/") or path in BROWSER_PATHS


def install(api: FastAPI, *, needs_key: bool) -> None:
    """Adds the pages to an app created with `docs_url=None, redoc_url=None`, and the API key to its OpenAPI document."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        return with_key(plain(), needs_key=needs_key)

    api.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend the document

    async def docs(_: Request) -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=relative(SCHEMA_PATH),
            title=api.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        )

    async def redoc(_: Request) -> HTMLResponse:
        return get_redoc_html(
            openapi_url=relative(SCHEMA_PATH),
            title=api.title,
            redoc_js_url="docs/redoc.standalone.js",
            redoc_favicon_url="docs/favicon.png",
            with_google_fonts=False,
        )

    async def asset(request: Request) -> FileResponse:
        name = request.path_params["name"]
        if name not in FILES:
            raise NotFoundError(f"there is no /docs/{name}; /docs lists the routes")
        return FileResponse(assets() / name, media_type=FILES[name])

    api.add_route("/docs", docs, include_in_schema=False)
    api.add_route("/redoc", redoc, include_in_schema=False)
    api.add_route("/docs/{name}", asset, include_in_schema=False)


def with_key(document: dict[str, Any], *, needs_key: bool) -> dict[str, Any]:
    """The document with the two ways to send a key, which are optional if the service has none."""
    either: list[dict[str, list[str]]] = [{name: []} for name in KEY_SCHEMES]
    document.setdefault("components", {})["securitySchemes"] = KEY_SCHEMES
    document["security"] = either if needs_key else [{}, *either]
    for path in KEYLESS_PATHS:
        for operation in document["paths"].get(path, {}).values():
            operation["security"] = []
    return document


def relative(path: str) -> str:
    """The path relative to the page, which is at the service's root."""
    return path.removeprefix("/")


def assets() -> Path:
    """The folder of fastapi-offline's scripts and styles."""
    return Path(str(files("fastapi_offline"))) / "static"
