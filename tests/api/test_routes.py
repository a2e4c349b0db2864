"""One table answers the routes with a JSON body; an unmodified FastAPI documents them and answers the rest."""

import asyncio
from typing import get_type_hints

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request
from starlette.routing import Route

from app.api.routes import JSON_ROUTES
from app.main import create_app
from app.settings import Settings
from tests.api.asking import assert_error


async def ask(method: str, path: str, app: object = None) -> httpx.Response:
    app = app or create_app(Settings(_env_file=None))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type] # an ASGI app
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path)


def test_fastapi_is_as_it_comes() -> None:
    api = create_app(Settings(_env_file=None)).api
    assert type(api) is FastAPI
    routes = [each.original_route for each in iter_route_contexts(api.routes)]
    assert {type(route) for route in routes} == {APIRoute, Route}
    assert len([route for route in routes if isinstance(route, APIRoute)]) > len(JSON_ROUTES)


@pytest.mark.parametrize(("method", "path"), JSON_ROUTES)
def test_a_row_names_the_body_that_its_handler_takes(method: str, path: str) -> None:
    row = JSON_ROUTES[method, path]
    assert get_type_hints(row.handler)["body"] is row.body_type


def test_every_row_is_documented_with_its_body_its_answer_and_its_errors() -> None:
    paths = asyncio.run(ask("GET", "/openapi.json")).json()["paths"]
    for (method, path), row in JSON_ROUTES.items():
        operation = paths[path][method.lower()]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{row.body_type.__name__}"}
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]
        errors = {int(status) for status in operation["responses"]} - {200}
        assert errors == {401, 403, *row.errors.statuses}


@pytest.mark.parametrize("path", ["/score/", "/health/"])
def test_a_path_with_a_slash_too_many_is_not_found_and_no_redirect(path: str) -> None:
    assert_error(asyncio.run(ask("POST", path)), 404, "not_found", says=path)


def test_another_method_is_refused_with_the_one_that_there_is() -> None:
    response = asyncio.run(ask("GET", "/score"))
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_fault_in_a_route_of_fastapi_is_the_one_error_body() -> None:
    app = create_app(Settings(_env_file=None))

    async def faulty(_: Request) -> None:
        raise RuntimeError("secret detail")

    app.api.add_route("/faulty", faulty)  # type: ignore[arg-type] # returns nothing
    response = asyncio.run(ask("GET", "/faulty", app))
    assert_error(response, 500, "inference_failed")
    assert "secret" not in response.text
