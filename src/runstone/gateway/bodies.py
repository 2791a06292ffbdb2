"""Request bodies: their shapes, and how they are read: bounded, JSON only, every fault with its path."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, TypeVar, Union, cast

import msgspec
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, ValidationError, model_validator

from runstone import values
from runstone.commands import Key
from runstone.errors import BadJson, Invalid, TooLarge, TooSlow, UnsupportedMedia
from runstone.events import OnBusy
from runstone.limits import (
    BODY_BYTES_MAX,
    BODY_TIMEOUT_S,
    INPUT_BYTES_MAX,
    KEY_CHARS_MAX,
    METADATA_BYTES_MAX,
    NAME_CHARS_MAX,
    REASON_CHARS_MAX,
    THREAD_IMPORT_MESSAGES_MAX,
    TITLE_CHARS_MAX,
    URL_CHARS_MAX,
)
from runstone.messages import text_of
from runstone.values import Json

Metadata = dict[str, JsonValue]
Title = Annotated[str, Field(max_length=TITLE_CHARS_MAX)]
KeyText = Annotated[str, Field(min_length=1, max_length=KEY_CHARS_MAX)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]


class Body(BaseModel):
    """A name that is not known is refused: it is more likely misspelt than new."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Body):
    type: Literal["text", "reasoning"]
    text: str


class FilePart(Body):
    type: Literal["file"]
    url: Annotated[str, Field(max_length=URL_CHARS_MAX)] | None = None
    artifact_id: Annotated[str, Field(max_length=KEY_CHARS_MAX)] | None = None
    media_type: Name
    name: Name | None = None

    @model_validator(mode="after")
    def _one_place(self) -> FilePart:
        if (self.url is None) == (self.artifact_id is None):
            raise ValueError("a file has a url or an artifact_id")
        return self


class DataPart(Body):
    type: Literal["data"]
    value: JsonValue
    name: Name | None = None


class ActionPart(Body):
    type: Literal["action"]
    action_id: KeyText


class SourcePart(Body):
    type: Literal["source"]
    url: Annotated[str, Field(max_length=URL_CHARS_MAX)]
    title: Title | None = None


Part = Annotated[Union[TextPart, FilePart, DataPart, ActionPart, SourcePart], Discriminator("type")]  # noqa: UP007 - pydantic wants it so
Parts = Annotated[list[Part], Field(min_length=1, max_length=1000)]


class MessageBody(Body):
    parts: Parts
    metadata: Metadata = {}


class ImportedMessageBody(MessageBody):
    role: Literal["user", "assistant"]


class NewThreadBody(Body):
    title: Title | None = None
    metadata: Metadata = {}
    key: KeyText | None = None
    messages: Annotated[list[ImportedMessageBody], Field(max_length=THREAD_IMPORT_MESSAGES_MAX)] = []


class UpdateThreadBody(Body):
    title: Title | None = None
    metadata: Metadata = {}


class NewRunBody(Body):
    agent: Name
    input: JsonValue = None
    message: str | MessageBody | None = None
    on_busy: OnBusy = "enqueue"
    metadata: Metadata = {}
    key: KeyText | None = None


class NewRunAnywhereBody(NewRunBody):
    thread_key: KeyText | None = None


class CancelBody(Body):
    reason: Annotated[str, Field(max_length=REASON_CHARS_MAX)] | None = None


class DecisionBody(Body):
    decision: Literal["approve", "deny", "answer"]
    value: JsonValue = None
    comment: Annotated[str, Field(max_length=REASON_CHARS_MAX)] | None = None


B = TypeVar("B", bound=Body)


async def read(request: Request) -> dict[str, Json]:
    """The JSON object of a request; no body is `{}`. Raises TooLarge, TooSlow, UnsupportedMedia, BadJson."""
    text = await _text(request)
    if not text:
        return {}
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise UnsupportedMedia(f"The body is {media[:100] or 'of no declared type'}, not JSON.")
    value = values.parse(text)
    if not isinstance(value, dict):
        raise BadJson("The body is JSON, but not an object.")
    canonical = values.encode(value)  # refuses depth and numbers that no other store could keep; mends texts
    return cast("dict[str, Json]", values.decode(canonical))


async def _text(request: Request) -> str:
    size, chunks = 0, []
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise TooLarge(f"A body takes at most {BODY_BYTES_MAX} bytes.")
                chunks.append(chunk)
    except TimeoutError:
        raise TooSlow(f"The body did not come within {BODY_TIMEOUT_S:g} s.") from None
    try:
        return b"".join(chunks).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadJson(f"The body is not UTF-8: {error}") from None


def validate(model: type[B], value: dict[str, Json]) -> B:
    """Raises Invalid with the path of everything that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None


def invalid(found: Any) -> Invalid:
    """What pydantic found, in our words."""
    errors = [
        {"path": ".".join(str(step) for step in item["loc"]) or ".", "detail": str(item["msg"])} for item in found
    ]
    return Invalid(f"{errors[0]['path']}: {errors[0]['detail']}", errors)


def key_of(request: Request, value: dict[str, Json], key: str | None) -> Key | None:
    """The caller's key, from the body or the header, with the digest of the request."""
    header = request.headers.get("idempotency-key")
    if header is not None:
        if not 1 <= len(header) <= KEY_CHARS_MAX:
            raise Invalid.at("Idempotency-Key", f"must have 1 to {KEY_CHARS_MAX} characters")
        if key is not None and header != key:
            raise Invalid.at("key", "differs from the header Idempotency-Key")
        key = header
    if key is None:
        return None
    same = {name: item for name, item in value.items() if name != "key"}
    return Key(values.mend(key), values.digest(values.encode([request.method, request.url.path, same])))


def metadata_of(metadata: Metadata) -> msgspec.Raw | None:
    if not metadata:
        return None
    encoded = values.encode(metadata)
    if len(encoded) > METADATA_BYTES_MAX:
        raise TooLarge(f"metadata is {len(encoded)} bytes; the most is {METADATA_BYTES_MAX}.")
    return msgspec.Raw(encoded)


def parts_of(parts: list[Part] | str) -> msgspec.Raw:
    """Parts as they are stored; raises TooLarge."""
    plain: list[dict[str, Any]] = (
        [{"type": "text", "text": parts}]
        if isinstance(parts, str)
        else [part.model_dump(mode="json", exclude_unset=True) for part in parts]
    )
    return sized("message", plain)


def sized(what: str, value: object) -> msgspec.Raw:
    encoded = values.encode(value)
    if len(encoded) > INPUT_BYTES_MAX:
        raise TooLarge(f"The {what} is {len(encoded)} bytes; the most is {INPUT_BYTES_MAX}.")
    return msgspec.Raw(encoded)


def input_and_message(body: NewRunBody) -> tuple[Json, msgspec.Raw | None, msgspec.Raw | None]:
    """The input, the parts of the message, and its metadata: each may stand for the other."""
    if body.message is None:
        message = parts_of(body.input) if isinstance(body.input, str) else None
        return body.input, message, None
    metadata = None
    if isinstance(body.message, str):
        parts = parts_of(body.message)
    else:
        parts, metadata = parts_of(body.message.parts), metadata_of(body.message.metadata)
    if "input" in body.model_fields_set:
        return body.input, parts, metadata
    plain = values.decode(parts)
    assert isinstance(plain, list)
    return text_of(part for part in plain if isinstance(part, dict)), parts, metadata
