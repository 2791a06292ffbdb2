"""Reads what a server answers into resources."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import pydantic

from runstone.client.http import Http, Params, stranger
from runstone.limits import PAGE_ROWS_MAX
from runstone.resources import Resource

R = TypeVar("R", bound=Resource)
S = TypeVar("S", bound=msgspec.Struct)


def resource(http: Http, kind: type[R], answer: bytes) -> R:
    with _understood(http, kind):
        return kind.model_validate_json(answer)


def record(http: Http, kind: type[S], answer: bytes) -> S:
    with _understood(http, kind):
        return msgspec.json.decode(answer, type=kind)


class Listed(list[R]):
    """Resources; of threads also `feed`, the cursor that `Client.feed` goes on after without a gap."""

    feed: str | None = None


async def listing(
    http: Http, kind: type[R], plural: str, path: str, params: Params, limit: int | None = None
) -> Listed[R]:
    """The first `limit` resources of a list, or all of them; as many requests as it takes."""
    found: Listed[R] = Listed()
    cursor: str | None = None
    while limit is None or len(found) < limit:
        rows = PAGE_ROWS_MAX if limit is None else min(limit - len(found), PAGE_ROWS_MAX)
        page_params = {**params, "limit": rows} | ({} if cursor is None else {"cursor": cursor})
        answer = await http.request("GET", path, params=page_params)
        with _understood(http, kind):
            page = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])
            found += pydantic.TypeAdapter(list[kind]).validate_json(bytes(page[plural]))  # type: ignore[valid-type]
            if "feed" in page:
                found.feed = msgspec.json.decode(page["feed"], type=str)
            cursor = msgspec.json.decode(page.get("next_cursor", msgspec.Raw(b"null")), type=str | None)
        if cursor is None:
            break
    return found


@contextmanager
def _understood(http: Http, kind: type) -> Iterator[None]:
    try:
        yield
    except (pydantic.ValidationError, msgspec.DecodeError, KeyError) as error:
        raise stranger(http.url, f"what should be of the kind {kind.__name__} is not") from error
