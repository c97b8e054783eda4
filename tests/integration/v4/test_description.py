"""Requests made from the OpenAPI descriptions of router and peer: none of them breaks a server."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from tests.support.v4 import Server

# Of one server. A machine that is busy with other tests gets through fewer requests.
BUDGET_S = 20.0
# What is right is cheap to make, what is wrong is not.
EXAMPLES_MAX = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 4}
BODY = b"bytes of a chunk"


def with_known_names(document: dict[str, Any], names: dict[str, list[Any]]) -> dict[str, Any]:
    """The description, with names that are there proposed besides any text."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if known := names.get(parameter["name"]):
                    parameter["schema"] = {"anyOf": [{"enum": known}, parameter["schema"]]}
    fields = document["components"]["schemas"]["PutMetadata"]["properties"]
    for name, known in names.items():
        if name in fields:
            fields[name] = {"anyOf": [{"enum": known}, fields[name]]}
    return document


def send_bytes(server: Server, answer: Any) -> None:
    """Second steps for what was announced, right or wrong: no matter what, nothing breaks."""
    task = answer["tasks_ids"][0] if "tasks_ids" in answer else answer["task_id"]
    assert server.send(task, BODY).status_code < 500
    assert server.send_form(task, BODY).status_code < 500


@pytest.mark.parametrize("which", ["router", "peer"])
def test_no_request_of_the_description_breaks_a_server(
    which: str, request: pytest.FixtureRequest, router: Server, bucket: str
) -> None:
    server: Server = request.getfixturevalue(which)
    document = server.client.get("/openapi.json").json()
    router.put(bucket, "record", BODY)
    router.put_ball(bucket, "ball", [b"0" * 9000, b"1" * 9000])
    names: dict[str, list[Any]] = {
        "bucket_id": [bucket],
        "key": ["record", "ball_0", "ball", "new"],
        "ball_id": ["ball", "record"],
        "checksum": [""],
        "size": [len(BODY)],
    }
    schema = schemathesis.openapi.from_dict(with_known_names(document, names))
    ends_s = time.monotonic() + BUDGET_S
    asked: dict[str, int] = {}

    def ask(case: Case[Any]) -> None:
        response = case.call(base_url=str(server.client.base_url))
        said = f"{case.as_curl_command()}\n{response.status_code} {response.text}"
        assert response.status_code < 500, said
        asked[case.operation.label] = asked.get(case.operation.label, 0) + 1
        if response.status_code == 200 and case.operation.label.endswith("metadata"):
            answer = response.json()
            if "tasks_ids" in answer or "task_id" in answer:
                send_bytes(server, answer)

    operations = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operations.append(found.ok())
    for mode, examples_max in EXAMPLES_MAX.items():
        bounded = settings(
            max_examples=examples_max,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        for operation in operations:
            if time.monotonic() > ends_s:
                break
            strategy = operation.as_strategy(generation_mode=mode)
            # There is nothing wrong to be sent to an operation that takes nothing.
            with suppress(Unsatisfiable):
                bounded(given(case=strategy)(ask))()
    assert len(asked) > 10, asked
    assert sum(asked.values()) > 50, asked
