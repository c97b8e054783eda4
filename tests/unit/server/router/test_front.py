import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp

from mictlanfs import __version__
from mictlanfs.errors import UsageError
from mictlanfs_server.router.front import (
    DEFAULT_FRONT,
    CrossOrigin,
    across_origins,
    front_settings,
    present,
)

ORIGIN = "https://page.example"


def app_with(environ: Mapping[str, str]) -> ASGIApp:
    app, settings = FastAPI(description="What it is."), front_settings(environ)
    present(app, settings)

    @app.get("/api/v4/thing")
    def thing() -> int:
        return 7

    return across_origins(app, settings.cross_origin)


def ask(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(send())


def test_without_variables_it_is_as_mictlanx_but_open_to_no_other_page() -> None:
    settings = front_settings({})
    assert settings == DEFAULT_FRONT
    assert (settings.title, settings.prefix) == ("MictlanX Router", "/mictlanx")
    assert settings.version == __version__
    response = ask(app_with({}), "/api/v4/thing", origin=ORIGIN)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("prefix", ["", "/mictlanx"])
def test_every_path_is_answered_with_and_without_the_prefix(prefix: str) -> None:
    app = app_with({})
    assert ask(app, prefix + "/api/v4/thing").json() == 7
    assert "/mictlanx/openapi.json" in ask(app, prefix + "/docs").text
    assert ask(app, prefix + "/redoc").status_code == 200
    described = ask(app, prefix + "/openapi.json").json()
    assert list(described["paths"]) == ["/api/v4/thing"]
    assert ask(app, "/other/api/v4/thing").status_code == 404


@pytest.mark.parametrize("name", ["OPENAPI_PREFIX", "MICTLANX_ROUTER_OPENAPI_PREFIX"])
def test_the_prefix_can_be_changed_and_left_out(name: str) -> None:
    app = app_with({name: "/vss/"})
    assert ask(app, "/vss/api/v4/thing").json() == 7
    assert ask(app, "/mictlanx/api/v4/thing").status_code == 404
    assert front_settings({name: "/"}).prefix == ""
    with pytest.raises(UsageError, match=f"{name} is 'vss': it must begin with a slash"):
        front_settings({name: "vss"})


def test_the_document_says_what_it_is_told() -> None:
    environ = {
        "MICTLANX_OPEN_API_TITLE": "Mine",
        "MICTLANX_OPEN_API_VERSION": "9",
        "MICTLANX_OPEN_API_SUMMARY": "Short.",
        "MICTLANX_OPEN_API_LOGO": "https://page.example/logo.png",
    }
    info: dict[str, Any] = ask(app_with(environ), "/openapi.json").json()["info"]
    assert info == {
        "title": "Mine",
        "version": "9",
        "summary": "Short.",
        "description": "What it is.",
        "x-logo": {"url": "https://page.example/logo.png"},
    }
    assert front_settings({"MICTLANX_OPEN_API_DESCRIPTION": "Before."}).preface == "Before."


def test_pages_that_are_named_are_let_in() -> None:
    environ = {
        "MICTLANX_CORS_ALLOW_ORIGINS": f"{ORIGIN}, https://b.example",
        "MICTLANX_CORS_ALLOW_METHODS": "GET,DELETE",
        "MICTLANX_CORS_ALLOW_HEADERS": "Force",
        "MICTLANX_CORS_ALLOW_CREDENTILAS": "0",
    }
    app = app_with(environ)
    asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "force"}
    preflight = ask(app, "/api/v4/thing", "OPTIONS", **{"origin": ORIGIN, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert preflight.headers["access-control-allow-methods"] == "GET, DELETE"
    assert "access-control-allow-credentials" not in preflight.headers
    refused = ask(app, "/api/v4/thing", "OPTIONS", **{"origin": "https://c.example", **asked})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_all_pages_are_let_in_when_asked_so() -> None:
    response = ask(app_with({"MICTLANX_CORS_ALLOW_ORIGINS": "*"}), "/api/v4/thing", origin=ORIGIN)
    assert response.headers["access-control-allow-origin"] == ORIGIN


def test_the_right_spelling_of_credentials_wins() -> None:
    environ = {
        "MICTLANX_CORS_ALLOW_ORIGINS": ORIGIN,
        "MICTLANX_CORS_ALLOW_CREDENTIALS": "0",
        "MICTLANX_CORS_ALLOW_CREDENTILAS": "1",
    }
    assert front_settings(environ).cross_origin == CrossOrigin((ORIGIN,), has_credentials=False)
    with pytest.raises(UsageError, match="MICTLANX_CORS_ALLOW_CREDENTIALS is 'x'"):
        front_settings({**environ, "MICTLANX_CORS_ALLOW_CREDENTIALS": "x"})
