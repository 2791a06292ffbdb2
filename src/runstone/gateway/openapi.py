"""The OpenAPI document: what the framework cannot know of requests and answers that we read and write ourselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from runstone.gateway import bodies
from runstone.limits import KEY_CHARS_MAX
from runstone.resources import Action, Approval, Message, Resource, Run, Thread

Responses = dict[int | str, dict[str, Any]]

_REFERENCE = "#/components/schemas/{model}"
_NAMED: tuple[type[Resource] | type[bodies.Body], ...] = (
    Thread,
    Run,
    Message,
    Action,
    Approval,
    bodies.NewThreadBody,
    bodies.UpdateThreadBody,
    bodies.NewRunBody,
    bodies.NewRunAnywhereBody,
    bodies.CancelBody,
    bodies.DecisionBody,
)
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same as `key` in the body",
    "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
}
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "of a stream: the seq to go on after; wins over `after`",
    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "remedy"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "remedy": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["path", "detail"],
                "properties": {"path": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
_REFUSAL = {
    "description": "A problem: code says which, remedy what to do",
    "content": {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
}


def answer(model: type[Resource], body: type[bodies.Body] | None = None) -> dict[str, Any]:
    """A route that answers 200 with a resource."""
    return {"response_model": model} | ({} if body is None else _taking(body))


def made(model: type[Resource], body: type[bodies.Body], before: str) -> dict[str, Any]:
    """A route that answers 201 with what it made, or 200 with what a request with the same key made before."""
    said = _taking(body)
    said["openapi_extra"]["parameters"] = [_KEY]
    return said | {"status_code": 201, "response_model": model, "responses": _or_200(model, before)}


def accepted(model: type[Resource], body: type[bodies.Body], before: str) -> dict[str, Any]:
    """A route that answers 202, or 200 where nothing was left to do."""
    return _taking(body) | {"status_code": 202, "response_model": model, "responses": _or_200(model, before)}


def listing(plural: str, item: type[Resource], *, head: bool = False, feed: bool = False) -> dict[str, Any]:
    """A route that answers a page of resources."""
    properties: dict[str, Any] = {
        plural: {"type": "array", "items": {"$ref": _REFERENCE.format(model=item.__name__)}},
        "next_cursor": {"type": ["string", "null"]},
    }
    if head:
        properties["head"] = {"type": "integer"}
    schema = {"type": "object", "required": list(properties), "properties": properties}
    if feed:
        said = "of the first page: the feed's cursor of the moment it was read at"
        properties["feed"] = {"type": "string", "description": said}
    page = {"description": "One page", "content": {"application/json": {"schema": schema}}}
    return {"response_model": None, "responses": {200: page}}


def page_or_stream(model: type[Resource], *, ends: bool) -> dict[str, Any]:
    """A route that answers a page of events, or a stream of them."""
    responses: Responses = {
        200: {
            "description": "A page, or a stream with `Accept: text/event-stream`",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }
    if ends:
        responses[204] = {"description": "Of a stream: the run has ended, and nothing is left after the cursor"}
    return {"response_model": model, "responses": responses, "openapi_extra": {"parameters": [_LAST_EVENT_ID]}}


def stream_of_feed() -> dict[str, Any]:
    """The route that answers a stream of threads."""
    last = _LAST_EVENT_ID | {
        "description": "the cursor to go on after; wins over `after`",
        "schema": {"type": "string"},
    }
    content = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "response_class": Response,
        "response_model": None,
        "responses": {200: {"description": "A stream", "content": content}},
        "openapi_extra": {"parameters": [last]},
    }


def _taking(body: type[bodies.Body]) -> dict[str, Any]:
    """The request body, which is read and checked by `bodies`; it may be left away where no member must be there."""
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=body.__name__)}}}
    required = any(field.is_required() for field in body.model_fields.values())
    return {"openapi_extra": {"requestBody": {"required": required, "content": content}}}


def _or_200(model: type[Resource], why: str) -> Responses:
    return {200: {"model": model, "description": f"The one that {why}"}}


def document(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema:
        return app.openapi_schema
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, named = models_json_schema([(model, "validation") for model in _NAMED], ref_template=_REFERENCE)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in named.get("$defs", {}).items():
        schemas.setdefault(name, schema)
    schemas["Problem"] = _PROBLEM
    for framework in ("HTTPValidationError", "ValidationError"):
        schemas.pop(framework, None)
    for path in made["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _REFUSAL
    app.openapi_schema = made
    return made
