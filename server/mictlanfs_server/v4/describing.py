"""The v4 interface as an application with its OpenAPI description, from its table of operations.

Source: OpenAPI Specification 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from mictlanfs_server.v4.web import BYTES, FORM, PLACE, Operation, application_of

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_REF: Final = "#/components/schemas/{name}"
_ERROR: Final = "MictlanXError"
_ERROR_STATUSES: Final = (400, 404, 409, 422)


def describe(operations: Sequence[Operation]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `paths` and the component schemas of a table."""
    described = [operation for operation in operations if operation.is_described]
    types = list(_types(described))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(str, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in described:
        path = PLACE.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, by_type)
    components[_ERROR] = {
        "type": "object",
        "properties": {
            "detail": {
                "type": ["object", "array"],
                "description": "an object with `msg` and `code`; a list for status 422",
            }
        },
        "required": ["detail"],
    }
    return paths, components


class DescribedApplication:
    """The application of a table of operations, with its description."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._application = application_of(operations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._application(scope, receive, send)

    def describe(self, document: dict[str, Any]) -> dict[str, Any]:
        """An OpenAPI document with the table in it; the same document."""
        paths, components = describe(self._operations)
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        document.setdefault("paths", {}).update(paths)
        return document


def _types(operations: Iterable[Operation]) -> Iterable[Any]:
    found: dict[str, Any] = {}
    for operation in operations:
        for kind in (operation.answer, operation.takes):
            if kind is not None and kind not in (BYTES, FORM):
                found[str(kind)] = kind
    return found.values()


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "Done"}
    if operation.answer is not None:
        schema = schemas[str(operation.answer)]
        success["content"] = {"application/json": {"schema": schema}}
    elif operation.gives_bytes:
        success["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    error = {"application/json": {"schema": {"$ref": _REF.format(name=_ERROR)}}}
    responses: dict[str, Any] = {str(operation.status): success}
    for status in _ERROR_STATUSES:
        responses.setdefault(str(status), {"description": "Refused", "content": error})
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [*_path_parameters(operation.path), *_parameters(operation)],
        "responses": responses,
    }
    if operation.description:
        described["description"] = operation.description
    if operation.takes is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.takes, schemas)}
    return described


def _content(takes: object, schemas: dict[str, Any]) -> dict[str, Any]:
    binary = {"type": "string", "format": "binary"}
    if takes == BYTES:
        return {"application/octet-stream": {"schema": binary}}
    if takes == FORM:
        form = {"type": "object", "properties": {"data": binary}, "required": ["data"]}
        return {"multipart/form-data": {"schema": form}}
    return {"application/json": {"schema": schemas[str(takes)]}}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, _ in PLACE.findall(path)
    ]


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": parameter.name,
            "in": parameter.where,
            "required": False,
            "description": parameter.help,
            "schema": {"type": parameter.kind},
        }
        for parameter in operation.parameters
    ]
