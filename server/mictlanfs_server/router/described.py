"""The router's interface as FastAPI serves and describes it: for people, and for what is rare.

Imported when the first request comes that is no message. Owns the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI
from fastapi.responses import Response

from mictlanfs import wire
from mictlanfs_server.http import describe_messages, install_error_handlers
from mictlanfs_server.router.front import FrontSettings, present

if TYPE_CHECKING:
    from starlette.routing import Route

    from mictlanfs_server.router.handlers import ReadRoute
    from mictlanfs_server.router.routes import MessageRoute

DESCRIPTION = """
The authority on names, metadata, sessions and peers of a MictlanFS space.

Below are the requests that answer with JSON. All others are `POST` with a msgpack body and answer
200 with a msgpack body; structures are arrays, their fields in the order of `mictlanfs.wire`. An
error is another status with a JSON body of `kind`, `operation`, `target` and `detail`. Every answer
has the header `x-mictlanfs-peer-map`: the version of the peer map.

"""


def described_app(
    front: FrontSettings,
    routes: Sequence[Route],
    messages: Sequence[MessageRoute | ReadRoute],
    looks: Mapping[str, Callable[[], Awaitable[Response]]],
    describe_door: Callable[[dict[str, Any]], dict[str, Any]],
) -> FastAPI:
    """The application.

    Args:
        front: how it presents itself.
        routes: of messages.
        messages: the same as they are described.
        looks: what is looked at, by path.
        describe_door: adds the interface of MictlanX to an OpenAPI document.
    """
    preface = f"{front.preface}\n\n" if front.preface else ""
    table = describe_messages((route.path, route.request_type, route.purpose) for route in messages)
    app = FastAPI(description=preface + DESCRIPTION + table)
    present(app, front)
    app.router.routes[:0] = routes
    _, components = msgspec.json.schema_components(
        [wire.SpaceStatus], ref_template="#/components/schemas/{name}"
    )
    schema = {"schema": {"$ref": "#/components/schemas/SpaceStatus"}}
    for path, handler in looks.items():
        described: dict[int | str, dict[str, Any]] | None = None
        if path == wire.Path.STATUS:
            described = {200: {"content": {"application/json": schema}}}
        app.add_api_route(
            path, handler, response_model=None, response_class=Response, responses=described
        )
    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe_door(make_openapi())
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        return document

    # FastAPI's documented way to extend the description.
    app.openapi = openapi  # type: ignore[method-assign]
    install_error_handlers(app)
    return app
