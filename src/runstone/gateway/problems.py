"""Errors as HTTP answers: every refusal is a problem with a code and a remedy."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import structlog
from starlette.responses import Response

from runstone import values
from runstone.errors import Limited, MethodNotAllowed, NotFound, RunstoneError, StoreFailed, Unavailable
from runstone.ids import new_id

logger = structlog.get_logger(__name__)

_RETRY_AFTER_S = {Limited: 1, Unavailable: 1, StoreFailed: 5}


def problem(error: RunstoneError, headers: Mapping[str, str] | None = None) -> Response:
    headers = {"cache-control": "no-store", **(headers or {})}
    for kind, seconds in _RETRY_AFTER_S.items():
        if isinstance(error, kind):
            known = error.retry_after_s if isinstance(error, Unavailable) else None
            headers["retry-after"] = str(max(ceil(known or 0), seconds))
    return Response(values.encode_plain(error.problem()), error.status, headers, media_type="application/problem+json")


def of_status(status: int, detail: str) -> RunstoneError:
    """The error for a status that the framework decided on."""
    if status == 405:
        return MethodNotAllowed("This path takes other methods.")
    return (
        NotFound("There is nothing at this path.", remedy="/openapi.json lists the paths.")
        if status == 404
        else RunstoneError(detail)
    )


def unexpected(error: Exception) -> RunstoneError:
    """An error that nobody foresaw: its id leads from the answer to the server's log."""
    error_id = new_id("err")
    logger.error("a request failed", error_id=error_id, exc_info=error)
    return RunstoneError(f"Something failed; look for {error_id} in the server's log.")
