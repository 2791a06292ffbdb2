"""What a program asks of a Runstone server: threads, runs, and what happens in them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

import httpx2
import msgspec
from msgspec import UNSET, UnsetType

from runstone import values
from runstone.client.answers import Listed, listing, record, resource
from runstone.client.asgi import AsgiApp, AsgiTransport
from runstone.client.feed import FeedStream
from runstone.client.http import URL_DEFAULT, Http, Params, Passing, problem
from runstone.client.runs import RunHandle
from runstone.client.stream import Event, EventStream
from runstone.errors import Invalid
from runstone.events import OnBusy, Role
from runstone.ids import new_key
from runstone.limits import PAGE_ROWS_DEFAULT
from runstone.resources import Action, AgentInfo, Approval, Message, Resource, Run, Thread
from runstone.states import ApprovalStatus
from runstone.values import Json

Order = Literal["asc", "desc"]


class Agents(Resource):
    agents: list[AgentInfo]


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events of a thread; `next_after` is the last `seq` looked at, `head` the thread's newest."""

    events: list[Event]
    next_after: int
    head: int
    generation: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server takes work: its `status`, and the `reasons` where that is not simply yes."""

    status: str
    reasons: list[str] = []


class _State(msgspec.Struct):
    state: msgspec.Raw


class _EventPage(msgspec.Struct):
    events: list[msgspec.Raw]
    next_after: int
    head: int
    generation: str


class Client:
    """A Runstone server, over the network or (`in_process`) in this process.

    Every request is repeated for up to 45 s while the server cannot be reached or says 502, 503 or 504, and
    then raises `Unavailable`. What makes something carries an idempotency key, so a lost answer makes nothing
    twice. What the server refuses is raised as the class of `runstone.errors` with its code.

    `url` is where the server is (default RUNSTONE_URL, else http://127.0.0.1:8700); `token` a JWT or key
    (default RUNSTONE_TOKEN). Use it in one event loop; close it with `async with` or `aclose`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        url = url or os.environ.get("RUNSTONE_URL") or URL_DEFAULT
        token = os.environ.get("RUNSTONE_TOKEN") if token is None else token
        self._http = Http(url, token, transport)

    @classmethod
    def in_process(cls, app: AsgiApp, user_id: str = "local") -> Self:
        """A client of an app in this process, without a socket, as the user that the caller names."""
        return cls("http://127.0.0.1", token="", transport=AsgiTransport(app, user_id=user_id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes all connections, streams too; no run notices."""
        await self._http.close()

    # --- runs

    async def start(
        self,
        agent: str,
        input: object = UNSET,
        *,
        message: str | Mapping[str, object] | UnsetType = UNSET,
        thread_id: str | None = None,
        thread_key: str | None = None,
        on_busy: OnBusy | None = None,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> RunHandle:
        """Starts a run: in a thread by its id or by your own key for it, else in a new one.

        `input` is any JSON value. `message` is what a person says: text, `{"parts": […], "metadata"?: {…}}`;
        its text is the input where there is none. `on_busy` says what to do in a thread with an unfinished
        run: enqueue (default), interrupt or reject. With the same `key` again, the same run is returned.
        """
        if thread_id is not None and thread_key is not None:
            raise Invalid.at("thread_key", "a thread is named by its id or by its key, not both")
        body = _given(
            agent=agent,
            input=input,
            message=message,
            thread_key=_or_unset(thread_key),
            on_busy=_or_unset(on_busy),
            metadata=_or_unset(metadata),
            key=new_key() if key is None else key,
        )
        path = "/v1/runs" if thread_id is None else f"{_thread(thread_id)}/runs"
        run = resource(self._http, Run, await self._http.request("POST", path, body=body))
        return RunHandle(self._http, run.run_id, run)

    def run(self, run_id: str) -> RunHandle:
        """A handle on a run that exists; nothing is asked yet."""
        return RunHandle(self._http, run_id)

    async def runs(
        self,
        *,
        status: str | None = None,
        agent: str | None = None,
        thread_id: str | None = None,
        order: Order | None = None,
        limit: int = PAGE_ROWS_DEFAULT,
    ) -> list[Run]:
        """The first `limit` runs, newest activity first."""
        params = _params(status=status, agent=agent, thread_id=thread_id, order=order)
        return await listing(self._http, Run, "runs", "/v1/runs", params, limit)

    async def agents(self) -> list[AgentInfo]:
        return resource(self._http, Agents, await self._http.request("GET", "/v1/agents")).agents

    # --- what people are asked

    async def approvals(
        self,
        *,
        run_id: str | None = None,
        status: ApprovalStatus | None = None,
        order: Order | None = None,
        limit: int = PAGE_ROWS_DEFAULT,
    ) -> list[Approval]:
        """The first `limit` approvals and questions, oldest first; of a run with those of its descendants."""
        params = _params(run_id=run_id, status=status, order=order)
        return await listing(self._http, Approval, "approvals", "/v1/approvals", params, limit)

    async def approve(self, approval_id: str, comment: str | None = None) -> Approval:
        """Says yes. Safe to repeat; raises `AlreadyDecided` where it was decided otherwise, or its time is over."""
        return await self._decide(approval_id, decision="approve", comment=_or_unset(comment))

    async def deny(self, approval_id: str, comment: str | None = None) -> Approval:
        """Says no, to a question too. Safe to repeat, like `approve`."""
        return await self._decide(approval_id, decision="deny", comment=_or_unset(comment))

    async def answer(self, approval_id: str, value: object, comment: str | None = None) -> Approval:
        """Answers a question with a JSON value. Raises `Invalid` where it is not of the form that was asked for."""
        return await self._decide(approval_id, decision="answer", value=value, comment=_or_unset(comment))

    async def _decide(self, approval_id: str, **members: object) -> Approval:
        path = f"/v1/approvals/{quote(approval_id, safe='')}"
        return resource(self._http, Approval, await self._http.request("POST", path, body=_given(**members)))

    # --- threads

    async def create_thread(
        self,
        *,
        title: str | None = None,
        metadata: Mapping[str, object] | None = None,
        key: str | None = None,
        messages: Sequence[Mapping[str, object]] | None = None,
    ) -> Thread:
        """A new thread; `messages` is a history to go on from. The same `key` again: the same thread."""
        body = _given(
            title=_or_unset(title),
            metadata=_or_unset(metadata),
            key=new_key() if key is None else key,
            messages=UNSET if messages is None else list(messages),
        )
        return resource(self._http, Thread, await self._http.request("POST", "/v1/threads", body=body))

    async def thread(self, thread_id: str) -> Thread:
        return resource(self._http, Thread, await self._http.request("GET", _thread(thread_id)))

    async def update_thread(
        self,
        thread_id: str,
        *,
        title: str | UnsetType | None = UNSET,
        metadata: Mapping[str, object] | UnsetType = UNSET,
    ) -> Thread:
        """Replaces what is given, whole; `title=None` takes the title away."""
        body = _given(title=title, metadata=metadata)
        return resource(self._http, Thread, await self._http.request("PATCH", _thread(thread_id), body=body))

    async def delete_thread(self, thread_id: str) -> None:
        """Ends its unfinished runs at once. From then on it is `NotFound`, also to a second delete."""
        await self._http.request("DELETE", _thread(thread_id))

    async def threads(self, *, order: Order | None = None, limit: int = PAGE_ROWS_DEFAULT) -> Listed[Thread]:
        """The first `limit` threads, newest activity first; `feed(after=….feed)` tells what changes from then on."""
        return await listing(self._http, Thread, "threads", "/v1/threads", _params(order=order), limit)

    def feed(self, after: str | None = None) -> FeedStream:
        """The user's threads, each as it is now and again whenever it changes, also by another device.

        `after` is a cursor: of an earlier item, or of a list of threads. Without one all threads come first.
        """
        return FeedStream(self._http, after=after)

    # --- what is in a thread

    async def messages(
        self,
        thread_id: str,
        *,
        role: Role | None = None,
        status: str | None = None,
        run_id: str | None = None,
        children: bool = False,
        superseded: bool = False,
    ) -> list[Message]:
        """All messages, oldest first, with what is said so far of those that still stream."""
        params = _params(role=role, status=status, run_id=run_id, children=children, superseded=superseded)
        return await listing(self._http, Message, "messages", f"{_thread(thread_id)}/messages", params)

    async def actions(
        self,
        thread_id: str,
        *,
        status: str | None = None,
        run_id: str | None = None,
        children: bool = False,
        superseded: bool = False,
    ) -> list[Action]:
        """All tool calls, oldest first."""
        params = _params(status=status, run_id=run_id, children=children, superseded=superseded)
        return await listing(self._http, Action, "actions", f"{_thread(thread_id)}/actions", params)

    async def state(self, thread_id: str) -> dict[str, Json]:
        """The thread's public state."""
        answer = await self._http.request("GET", f"{_thread(thread_id)}/state")
        state = values.decode(record(self._http, _State, answer).state)
        return state if isinstance(state, dict) else {}

    def events(self, thread_id: str, after: int = 0, types: Collection[str] | None = None) -> EventStream:
        """The thread's events beyond `after`, live, until the stream is closed."""
        return EventStream(self._http, f"{_thread(thread_id)}/events", after=after, types=types)

    async def event_page(
        self,
        thread_id: str,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = None,
        types: Collection[str] | None = None,
        run_id: str | None = None,
        generation: str | None = None,
    ) -> EventPage:
        """Up to `limit` events beyond `after`, or just below `before`; ascending.

        Raises `GenerationChanged` where `generation` is not that of the server's history.
        """
        params = _params(
            after=after,
            before=before,
            limit=limit,
            types=None if types is None else ",".join(types),
            run_id=run_id,
            generation=generation,
        )
        answer = await self._http.request("GET", f"{_thread(thread_id)}/events", params=params)
        page = record(self._http, _EventPage, answer)
        return EventPage(
            events=[Event.decode(bytes(event)) for event in page.events],
            next_after=page.next_after,
            head=page.head,
            generation=page.generation,
        )

    # --- the server

    async def health(self) -> Health:
        """Whether the server is ready. Asked once: raises `Unavailable` at once where there is none."""
        try:
            response = await self._http.once("GET", "/readyz")
        except Passing as passing:
            raise passing.error from passing.__cause__
        try:
            return msgspec.json.decode(response.content, type=Health)
        except msgspec.DecodeError:
            raise problem(self._http.url, response) from None


def _thread(thread_id: str) -> str:
    return f"/v1/threads/{quote(thread_id, safe='')}"


def _or_unset(value: object) -> object:
    return UNSET if value is None else value


def _given(**members: object) -> bytes:
    """A request's body: the members that are set. Raises `Invalid` for what is not JSON."""
    return values.encode({name: value for name, value in members.items() if value is not UNSET})


def _params(**params: str | int | None) -> Params:
    """A query: what is None or False is left to the server's default."""
    return {
        name: "true" if value is True else value
        for name, value in params.items()
        if value is not None and value is not False
    }
