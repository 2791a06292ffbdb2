"""Follows the feed: a user's threads as they change, for lists that stay true."""

from __future__ import annotations

import msgspec
import pydantic

from runstone.client.http import Http, Params
from runstone.client.sse import Frame
from runstone.client.stream import Backoff, Fault, Stream
from runstone.resources import Thread


class FeedItem(msgspec.Struct, frozen=True, kw_only=True):
    """A thread as it is now; null where it is deleted. `cursor` goes on after this change."""

    cursor: str
    thread_id: str
    thread: Thread | None


class _Gone(msgspec.Struct):
    thread_id: str = ""
    deleted: bool = False


class _CaughtUp(msgspec.Struct):
    cursor: str


class FeedStream(Stream[FeedItem]):
    """The user's threads, each as it is now and again whenever it changes; put them into a dict by id.

    `cursor` is where the stream is, for a later one to go on from: null, and the present threads come first.
    It raises `GenerationChanged` where the store was restored since: forget the threads, and begin anew.
    """

    def __init__(self, http: Http, *, after: str | None, backoff: Backoff | None = None) -> None:
        super().__init__(http, "/v1/feed", backoff=backoff)
        self.cursor = after

    def _params(self) -> Params:
        return {} if self.cursor is None else {"after": self.cursor}

    def _message(self, frame: Frame) -> FeedItem:
        if not frame.id:
            raise Fault("A changed thread came without a cursor.")
        gone = msgspec.json.decode(frame.data, type=_Gone)
        try:
            thread = None if gone.deleted else Thread.model_validate_json(frame.data)
        except pydantic.ValidationError as error:
            raise Fault(f"A thread cannot be read: {error}") from error
        self.cursor = frame.id
        return FeedItem(cursor=frame.id, thread_id=gone.thread_id, thread=thread)

    def _caught_up(self, data: str) -> None:
        self.cursor = msgspec.json.decode(data, type=_CaughtUp).cursor
