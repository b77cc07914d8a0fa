"""The shapes of Forgejo's REST answers, as far as vmrunner reads them.

The double checks every answer of its own against this.
"""

from __future__ import annotations

from typing import Any

import jsonschema

_STRING, _INTEGER, _STRINGS = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "array", "items": {"type": "string"}},
)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


RUNNER = _object(
    id=_INTEGER,
    uuid=_STRING,
    owner_id=_INTEGER,
    repo_id=_INTEGER,
    name=_STRING,
    status={"type": "string", "enum": ["offline", "idle", "active"]},
    version=_STRING,
    labels=_STRINGS,
    description=_STRING,
    ephemeral={"type": "boolean"},
)
JOB = _object(
    id=_INTEGER,
    attempt=_INTEGER,
    handle=_STRING,
    repo_id=_INTEGER,
    owner_id=_INTEGER,
    name=_STRING,
    needs=_STRINGS,
    runs_on=_STRINGS,
    task_id=_INTEGER,
    status=_STRING,
)
REGISTERED = _object(
    id=_INTEGER, uuid=_STRING, token={"type": "string", "pattern": "^[0-9a-f]{40}$"}
)
TASK = _object(
    id=_INTEGER,
    name=_STRING,
    head_branch=_STRING,
    head_sha=_STRING,
    run_number=_INTEGER,
    event=_STRING,
    display_title=_STRING,
    status=_STRING,
    workflow_id=_STRING,
    url=_STRING,
    created_at=_STRING,
    updated_at=_STRING,
    run_started_at=_STRING,
)
TASKS = _object(total_count=_INTEGER, workflow_runs={"type": "array", "items": TASK})
# A repository has some seventy properties more; nobody here reads them.
REPOSITORY = _object(id=_INTEGER, name=_STRING, full_name=_STRING, default_branch=_STRING)
RUN = _object(
    id=_INTEGER,
    index_in_repo=_INTEGER,
    prettyref=_STRING,
    trigger_event=_STRING,
    event_payload=_STRING,
    is_fork_pull_request={"type": "boolean"},
    repository=REPOSITORY,
)
RUNS = _object(total_count=_INTEGER, workflow_runs={"type": "array", "items": RUN})
VERSION = _object(version=_STRING)
ERROR = _object(message=_STRING, url=_STRING)
NOT_FOUND = _object(message=_STRING, url=_STRING, errors=_STRINGS)

SCOPES = ("/admin", "/orgs/{org}", "/user", "/repos/{owner}/{repo}")

ANSWERS: dict[tuple[str, str, int], Any] = {
    ("get", "/version", 200): VERSION,
    ("get", "/repositories/{id}", 200): REPOSITORY,
    ("get", "/repositories/{id}", 404): NOT_FOUND,
    ("get", "/repos/{owner}/{repo}/actions/runs", 200): RUNS,
    ("get", "/repos/{owner}/{repo}/actions/tasks", 200): TASKS,
    ("get", "/repos/{owner}/{repo}/actions/tasks", 404): NOT_FOUND,
}
"""By method, path (as the API description writes it) and status; None where there is no body."""
for _scope in SCOPES:
    _runners = f"{_scope}/actions/runners"
    ANSWERS |= {
        ("get", _runners, 200): {"type": "array", "items": RUNNER},
        ("post", _runners, 201): REGISTERED,
        ("post", _runners, 401): ERROR,
        ("get", _runners, 404): NOT_FOUND,
        ("post", _runners, 404): NOT_FOUND,
        # In Go a list that holds nothing is written as null here, which the description does not
        # say.
        ("get", f"{_runners}/jobs", 200): {
            "anyOf": [{"type": "array", "items": JOB, "minItems": 1}, {"type": "null"}]
        },
        ("get", f"{_runners}/jobs", 403): ERROR,
        ("get", f"{_runners}/{{runner_id}}", 200): RUNNER,
        ("get", f"{_runners}/{{runner_id}}", 404): NOT_FOUND,
        ("delete", f"{_runners}/{{runner_id}}", 204): None,
        ("delete", f"{_runners}/{{runner_id}}", 404): NOT_FOUND,
    }

UNDESCRIBED = {401, 403}
"""What the server answers before it looks at the path: a wrong token, a missing scope, on any path.
"""


def check(method: str, path: str, status: int, body: Any) -> None:
    """Raise jsonschema.ValidationError, or KeyError for an answer that Forgejo does not give."""
    key = (method.lower(), path, status)
    shape = ERROR if status in UNDESCRIBED and key not in ANSWERS else ANSWERS[key]
    if shape is None:
        assert body is None
    else:
        jsonschema.validate(body, shape)
