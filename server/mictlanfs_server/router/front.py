"""How the HTTP interface of a router presents itself: description, prefix, pages of other origins.

Owns what the variables of MictlanX say of that. Messages go past all of it (`DirectRoutes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from mictlanfs import __version__
from mictlanfs.errors import UsageError
from mictlanfs_server import environment as variables

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp


class CrossOrigin(Struct, frozen=True):
    """Which requests of pages from elsewhere browsers let through; `*` in a list: all."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    has_credentials: bool = True


class FrontSettings(Struct, frozen=True):
    """What the interface says of itself.

    Attributes:
        title, version, summary: of the OpenAPI document.
        preface: goes before its description.
        logo: address of a picture; empty: none.
        prefix: every path is answered below it as well; empty: none.
        cross_origin: None: pages of other origins get nothing.
    """

    title: str = variables.OPENAPI_TITLE.default
    version: str = __version__
    summary: str = variables.OPENAPI_SUMMARY.default
    preface: str = ""
    logo: str = ""
    prefix: str = variables.OPENAPI_PREFIX_OLD.default
    cross_origin: CrossOrigin | None = None


DEFAULT_FRONT: Final = FrontSettings()


def front_settings(environ: Mapping[str, str]) -> FrontSettings:
    """The settings that the environment gives.

    Raises:
        UsageError: a variable means nothing.
    """
    return FrontSettings(
        title=variables.OPENAPI_TITLE.value(environ),
        version=variables.OPENAPI_VERSION.read(environ) or __version__,
        summary=variables.OPENAPI_SUMMARY.value(environ),
        preface=variables.OPENAPI_DESCRIPTION.read(environ) or "",
        logo=variables.OPENAPI_LOGO.read(environ) or "",
        prefix=_prefix(environ),
        cross_origin=_cross_origin(environ),
    )


def present(app: FastAPI, settings: FrontSettings) -> None:
    """Make `app` present itself so. Before its first request; its description may follow later."""
    app.title, app.version, app.summary = settings.title, settings.version, settings.summary
    app.root_path = settings.prefix
    if settings.logo:
        _show_logo(app, settings.logo)


def across_origins(app: ASGIApp, allowed: CrossOrigin | None) -> ASGIApp:
    """`app`, with answers that tell browsers what pages of other origins may do."""
    if allowed is None:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=allowed.origins,
        allow_methods=allowed.methods,
        allow_headers=allowed.headers,
        allow_credentials=allowed.has_credentials,
    )


def _show_logo(app: FastAPI, logo: str) -> None:
    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        described = make_openapi()
        described["info"]["x-logo"] = {"url": logo}
        return described

    # FastAPI's documented way to extend the description.
    app.openapi = openapi  # type: ignore[method-assign]


def _prefix(environ: Mapping[str, str]) -> str:
    declared = (variables.OPENAPI_PREFIX, variables.OPENAPI_PREFIX_OLD)
    variable = next(v for v in declared if v.read(environ) is not None)
    prefix = variable.value(environ)
    if not prefix.startswith("/"):
        raise UsageError(
            f"{variable.name} is {prefix!r}: it must begin with a slash, or be only one"
        )
    return prefix.rstrip("/")


def _cross_origin(environ: Mapping[str, str]) -> CrossOrigin | None:
    origins = _listed(variables.CORS_ORIGINS.read(environ) or "")
    if not origins:
        return None
    credentials = variables.CORS_CREDENTIALS.read(environ)
    if credentials is None:
        credentials = variables.CORS_CREDENTIALS_AS_SPELLED.value(environ)
    return CrossOrigin(
        origins,
        _listed(variables.CORS_METHODS.value(environ)),
        _listed(variables.CORS_HEADERS.value(environ)),
        credentials,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (item.strip() for item in text.split(","))))
