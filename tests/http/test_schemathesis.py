"""Every operation of the API's description, called with all that fits it and much that does not.

Each answer must be one that the description has for that operation, in status, code, headers and
body; none is a failure of the daemon's or the storage's; and nothing outside the repositories is
touched, which the daemon's fixture looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, seed, settings
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from diskyard.daemon.tokens import Tokens
from diskyard.http import openapi
from diskyard.testing.daemon_process import DaemonProcess
from diskyard.testing.effort import Effort

EFFORT = Effort.of_environment()
EXAMPLES = 40 if EFFORT.thorough else 3
MiB = 1 << 20
Case: TypeAlias = schemathesis.Case[Any]
DESCRIBED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DOCUMENT = openapi.document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
if not EFFORT.thorough:
    # Every value at its bounds, alone and with others: minutes.
    SCHEMA.config.phases.update(phases=["examples", "fuzzing"])
QUIETLY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon, a session with a token for all, and what there is to be asked about."""

    daemon: DaemonProcess
    url: str
    session: requests.Session
    token: str
    known: dict[str, str]

    def call(self, case: Case, *, with_token: bool = True) -> Response:
        """Call it over TLS; the answer must be one that the description has."""
        headers = {"Authorization": f"Bearer {self.token}"} if with_token else {}
        ca_file = str(self.daemon.ca_file)
        answer = case.call(base_url=self.url, session=self.session, headers=headers, verify=ca_file)
        assert answer.status_code < 500, answer.text
        if case.method != case.operation.method.upper():
            assert answer.status_code == 405
            assert answer.headers["allow"]
        else:
            case.validate_response(answer, checks=DESCRIBED)
            described = case.operation.definition.raw["responses"]["200"]["headers"]
            assert "diskyard-tasks" not in answer.headers or "Diskyard-Tasks" in described
        return answer


@pytest.fixture
def target(attacked: DaemonProcess) -> Iterator[Target]:
    place = {"repoFormat": "localfs-1.0", "connectionParameters": attacked.place("a")}
    attacked.call("connectStorageRepository", repoId="a", **place)  # a call may have disconnected it
    disk = attacked.call("createVirtualDisk", targetRepoId="a", size=MiB)
    snapshot = attacked.call("createSnapshot", targetRepoId="a", baseVirtualDiskId=disk)
    tokens = Tokens(str(attacked.state_folder))
    for found in tokens.all():
        tokens.revoke(found.name)
    _, token = tokens.create("all", "admin", None)
    known = {
        "repoId": "a",
        "repositoryId": "a",
        "targetRepoId": "a",
        "imageId": disk,
        "baseVirtualDiskId": disk,
        "baseSnapshotId": snapshot,
        "snapshotId": snapshot,
        "baseImageId": snapshot,
    }
    with requests.Session() as session:
        session.verify = str(attacked.ca_file)
        session.trust_env = False
        yield Target(attacked, attacked.tls_url, session, token, known)


def tamed(target: Target, value: Any) -> Any:
    """A body whose examples of paths lead to places of the test's own, not of the machine."""
    folder = str(target.daemon.folder)
    if isinstance(value, dict):
        return {key: tamed(target, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [tamed(target, inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/srv", "/var")):
        return folder + value
    return value


def steered(target: Target, body: dict[str, Any]) -> dict[str, Any]:
    """The same body about images and a repository that there are."""
    return {key: target.known.get(key, value) for key, value in body.items()}


@SCHEMA.exclude(path="/v1/events").parametrize()
@seed(EFFORT.seed)
@QUIETLY
def test_every_answer_is_described(case: Case, target: Target) -> None:
    case.body = tamed(target, case.body)
    target.call(case)
    if isinstance(case.body, dict) and set(case.body) & set(target.known):
        case.body = steered(target, case.body)
        target.call(case)


@SCHEMA.exclude(path="/v1/events").parametrize()
@seed(EFFORT.seed)
@QUIETLY
def test_without_a_token_nothing_is_done(case: Case, target: Target) -> None:
    case.body = tamed(target, case.body)
    answer = target.call(case, with_token=False)
    needs_token = bool(case.operation.definition.raw["security"])
    if needs_token and answer.status_code != 405:
        assert answer.status_code in (401, 429)


@SCHEMA.include(path="/v1/events").parametrize()
@seed(EFFORT.seed)
@QUIETLY
def test_events(case: Case, target: Target) -> None:
    """A stream does not end: only how it begins is looked at."""
    headers = {**case.headers, "Authorization": f"Bearer {target.token}"}
    with target.session.request(
        case.method, f"{target.url}/v1/events", params=case.query, headers=headers, stream=True, timeout=60
    ) as answer:
        if answer.status_code == 200:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-request-id"]
        else:
            # It is no verb, so that a POST is not answered 405 but as every verb that there is not.
            assert answer.status_code in ((404,) if case.method == "POST" else (405, 422, 429))
            assert answer.headers["content-type"] == "application/problem+json"
