"""A peer's interface as FastAPI serves and describes it: for people, and for what is rare.

Imported when the first request comes that is about no chunk. Owns the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from mictlanfs import __version__
from mictlanfs_server.http import install_error_handlers


def described_app(
    looks: Mapping[str, Callable[[], Awaitable[Response]]],
    describe_door: Callable[[dict[str, Any]], dict[str, Any]],
) -> FastAPI:
    """The application.

    Args:
        looks: what is looked at, by path.
        describe_door: adds the interface of MictlanX to an OpenAPI document.
    """
    app = FastAPI(title="MictlanFS peer", version=__version__)
    for path, handler in looks.items():
        app.add_api_route(path, handler, response_model=None, response_class=Response)
    make_openapi = app.openapi
    # FastAPI's documented way to extend the description.
    app.openapi = lambda: describe_door(make_openapi())  # type: ignore[method-assign]
    install_error_handlers(app)
    return app
