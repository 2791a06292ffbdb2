"""The routes: requests become commands and queries; what comes back is a resource or a problem."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request
from msgspec import UNSET
from pydantic import JsonValue
from starlette.responses import JSONResponse, Response

from runstone import commands, values
from runstone.commands import Answered, ImportedMessage, Key, Made, NewRun, NewThread
from runstone.errors import AlreadyDecided, CursorAhead, GenerationChanged, Invalid, NotFound
from runstone.events import Event
from runstone.feed import cursor_at, pos_of
from runstone.gateway import bodies
from runstone.gateway.bodies import (
    CancelBody,
    DecisionBody,
    NewRunAnywhereBody,
    NewRunBody,
    NewThreadBody,
    UpdateThreadBody,
)
from runstone.gateway.decisions import answer_of
from runstone.gateway.feed import FeedStream
from runstone.gateway.gate import USER_KEY
from runstone.gateway.openapi import accepted, answer, listing, made, page_or_stream, stream_of_feed
from runstone.gateway.sse import EventStream, Streaming
from runstone.limits import PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, WAIT_S_MAX
from runstone.protocol import CURSOR_MAX, Filter, cursor_of, types_of
from runstone.resources import Action, AgentInfo, Approval, Listing, Message, Resource, Run, Thread
from runstone.runtime.breakers import Breakers
from runstone.runtime.definitions import Agents
from runstone.states import TERMINAL_EVENTS, ApprovalStatus, Status
from runstone.views import ListQuery, Page, ThreadRef

R = TypeVar("R", bound=Resource)
B = TypeVar("B", bound=bodies.Body)

Limit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX, description="rows at most")]
Cursor = Annotated[str | None, Query(max_length=1000, description="next_cursor of the page before")]
Order = Annotated[Literal["asc", "desc"] | None, Query(description="asc: oldest first")]
Flag = Annotated[bool, Query()]
Seq = Annotated[int | None, Query(ge=0, le=CURSOR_MAX)]
Text = Annotated[str | None, Query(max_length=256)]


class EventPage(Resource):
    """One page of events, as PROTOCOL.md gives them."""

    events: list[dict[str, JsonValue]]
    next_after: int
    head: int
    generation: str


class AgentListing(Resource):
    agents: list[AgentInfo]


class StateBody(Resource):
    state: dict[str, JsonValue]
    head: int


class Routes:
    """The handlers, on what they need."""

    def __init__(self, shared: Streaming, agents: Agents, breakers: Breakers) -> None:
        self._shared = shared
        self._breakers = breakers
        self._log = shared.log
        self._rows = shared.log.rows
        self._agents = agents

    def router(self) -> APIRouter:
        """Every route in one table: method, path, handler, and what the OpenAPI document says of its answers."""
        threads, thread, runs, run = "/threads", "/threads/{thread_id}", "/runs", "/runs/{run_id}"
        before = "started before with this key"
        table: tuple[tuple[str, str, Callable[..., Any], dict[str, Any]], ...] = (
            ("GET", "/agents", self.list_agents, answer(AgentListing)),
            ("GET", threads, self.list_threads, listing("threads", Thread, feed=True)),
            ("POST", threads, self.create_thread, made(Thread, NewThreadBody, "made before with this key")),
            ("GET", thread, self.get_thread, answer(Thread)),
            ("PATCH", thread, self.update_thread, answer(Thread, UpdateThreadBody)),
            ("DELETE", thread, self.delete_thread, {"status_code": 204, "response_model": None}),
            ("POST", f"{thread}/runs", self.start_in_thread, made(Run, NewRunBody, before)),
            ("POST", runs, self.start_anywhere, made(Run, NewRunAnywhereBody, before)),
            ("GET", runs, self.list_runs, listing("runs", Run)),
            ("GET", run, self.get_run, answer(Run)),
            ("POST", f"{run}/cancel", self.cancel_run, accepted(Run, CancelBody, "had ended before")),
            ("GET", "/approvals", self.list_approvals, listing("approvals", Approval)),
            ("POST", "/approvals/{approval_id}", self.decide, answer(Approval, DecisionBody)),
            ("GET", f"{thread}/messages", self.list_messages, listing("messages", Message, head=True)),
            ("GET", f"{thread}/actions", self.list_actions, listing("actions", Action, head=True)),
            ("GET", f"{thread}/state", self.get_state, answer(StateBody)),
            ("GET", f"{thread}/events", self.thread_events, page_or_stream(EventPage, ends=False)),
            ("GET", "/feed", self.feed, stream_of_feed()),
            ("GET", f"{run}/events", self.run_events, page_or_stream(EventPage, ends=True)),
        )
        router = APIRouter(prefix="/v1")
        for method, path, handler, said in table:
            router.add_api_route(path, handler, methods=[method], **said)
        return router

    # --- agents and threads ---------------------------------------------------------------------------------

    async def list_agents(self) -> Response:
        """The agents that can be started, with the schemas of their inputs."""
        return JSONResponse({"agents": [info.model_dump(mode="json") for info in self._agents.infos()]})

    async def create_thread(self, request: Request) -> Response:
        """A new thread, with an imported history if messages are given."""
        value, body = await self._body(request, NewThreadBody)
        new = NewThread(
            title=body.title,
            metadata=bodies.metadata_of(body.metadata),
            key=bodies.key_of(request, value, body.key),
            messages=[
                ImportedMessage(item.role, bodies.parts_of(item.parts), bodies.metadata_of(item.metadata))
                for item in body.messages
            ],
        )
        user_id = _user(request)
        done: Made = await self._log.append(commands.create_thread(user_id, new))
        return _resource(await self._thread(user_id, done.id), 201 if done.new else 200)

    async def list_threads(
        self, request: Request, limit: Limit = PAGE_ROWS_DEFAULT, cursor: Cursor = None, order: Order = None
    ) -> Response:
        query = ListQuery(limit=limit, cursor=cursor, descending=order != "asc")
        page = await self._rows.threads(_user(request), query)
        more = {} if page.feed_head is None else {"feed": cursor_at(self._log.generation, page.feed_head)}
        return _listing("threads", page, more)

    async def get_thread(self, request: Request, thread_id: str) -> Response:
        return _resource(await self._thread(_user(request), thread_id))

    async def update_thread(self, request: Request, thread_id: str) -> Response:
        """Replaces the title, the metadata, or both."""
        _, body = await self._body(request, UpdateThreadBody)
        given = body.model_fields_set
        command = commands.update_thread(
            _user(request),
            thread_id,
            title=body.title if "title" in given else UNSET,
            metadata=bodies.metadata_of(body.metadata) or values.raw({}) if "metadata" in given else UNSET,
        )
        await self._log.append(command)
        return _resource(await self._thread(_user(request), thread_id))

    async def delete_thread(self, request: Request, thread_id: str) -> Response:
        """Ends the thread's unfinished runs at once, then the thread."""
        await self._log.append(commands.delete_thread(_user(request), thread_id))
        return Response(status_code=204)

    async def feed(
        self,
        request: Request,
        after: Annotated[str | None, Query(description="a cursor of the feed; default: from the beginning")] = None,
    ) -> Response:
        """A live stream of the user's threads as they change, with `Accept: text/event-stream`."""
        if not _wants_stream(request):
            raise Invalid.at("Accept", "must be text/event-stream: the feed is a stream")
        last = request.headers.get("last-event-id")
        cursor, where = (last, "Last-Event-ID") if last else (after, "after")
        pos = None if cursor is None else pos_of(cursor, self._log.generation, where)
        return FeedStream(self._shared, _user(request), after=pos)

    # --- runs -------------------------------------------------------------------------------------------------

    async def start_in_thread(self, request: Request, thread_id: str) -> Response:
        """Starts an agent in a thread."""
        value, body = await self._body(request, NewRunBody)
        return await self._start(request, value, body, thread_id=thread_id)

    async def start_anywhere(self, request: Request) -> Response:
        """Starts an agent in a new thread, or in the one with a key."""
        value, body = await self._body(request, NewRunAnywhereBody)
        thread_key = None
        if body.thread_key is not None:
            # as if the thread had been made by a request of its own with this key
            made_by = values.encode(["POST", _sibling(request, "threads"), {}])
            thread_key = Key(values.mend(body.thread_key), values.digest(made_by))
        return await self._start(request, value, body, thread_key=thread_key)

    async def _start(
        self,
        request: Request,
        value: dict[str, values.Json],
        body: NewRunBody,
        *,
        thread_id: str | None = None,
        thread_key: Key | None = None,
    ) -> Response:
        user_id = _user(request)
        agent = self._agents.get(body.agent)
        given, message, message_metadata = bodies.input_and_message(body)
        agent.parameters.arguments(given)
        new = NewRun(
            agent=agent.name,
            input=bodies.sized("input", given),
            message=message,
            message_metadata=message_metadata,
            metadata=bodies.metadata_of(body.metadata),
            on_busy=body.on_busy,
            key=bodies.key_of(request, value, body.key),
            on_crash=agent.on_crash,
            max_attempts=agent.max_attempts,
            timeout_s=agent.timeout_s,
        )
        with self._breakers.start(agent.provider) as start:
            command = commands.start_run(
                user_id, new, thread_id=thread_id, thread_key=thread_key, refusal=start.refusal
            )
            done: Made = await self._log.append(command)
            start.used = done.new
        run = await self._run(user_id, done.id)
        if body.on_busy == "interrupt" and done.new:
            run = run.model_copy(update={"interrupted": list(done.interrupted)})
        return _resource(run, 201 if done.new else 200)

    async def list_runs(
        self,
        request: Request,
        limit: Limit = PAGE_ROWS_DEFAULT,
        cursor: Cursor = None,
        order: Order = None,
        status: Annotated[Status | None, Query()] = None,
        agent: Text = None,
        thread_id: Text = None,
    ) -> Response:
        query = ListQuery(
            limit=limit,
            cursor=cursor,
            descending=order != "asc",
            status=status,
            agent=agent,
            thread_id=thread_id,
        )
        return _listing("runs", await self._rows.runs(_user(request), query))

    async def get_run(
        self,
        request: Request,
        run_id: str,
        wait_s: Annotated[float, Query(ge=0, description="seconds to wait for the end; above 60 counts as 60")] = 0,
    ) -> Response:
        user_id = _user(request)
        run = await self._run(user_id, run_id)
        if wait_s and not run.ended:
            run = await self._wait_for_end(user_id, run, min(wait_s, WAIT_S_MAX))
        return _resource(run)

    async def _wait_for_end(self, user_id: str, run: Run, wait_s: float) -> Run:
        woken = asyncio.Event()
        thread = ThreadRef(run.thread_id, user_id)
        streams = self._shared.streams
        with streams.opened(user_id, "wait", woken.set), suppress(TimeoutError):
            async with self._log.tail(thread, after=run.first_seq, wake=woken.set) as tail, asyncio.timeout(wait_s):
                tail.cursor = tail.head
                run = await self._run(user_id, run.run_id)  # it may have ended before the tail began
                while not run.ended and streams.closing is None:
                    await woken.wait()
                    woken.clear()
                    if self._log.failure is not None:
                        raise self._log.failure
                    while tail.behind:
                        if _ends((await tail.read()).events, run.run_id):
                            run = await self._run(user_id, run.run_id)
        return run

    async def cancel_run(self, request: Request, run_id: str) -> Response:
        """Asks the run to stop: 202; 200 if it had ended before."""
        _, body = await self._body(request, CancelBody)
        reason = None if body.reason is None else values.mend(body.reason)
        unfinished: bool = await self._log.append(commands.cancel_run(_user(request), run_id, reason))
        return _resource(await self._run(_user(request), run_id), 202 if unfinished else 200)

    # --- approvals ----------------------------------------------------------------------------------------------

    async def list_approvals(
        self,
        request: Request,
        limit: Limit = PAGE_ROWS_DEFAULT,
        cursor: Cursor = None,
        order: Order = None,
        run_id: Annotated[str | None, Query(max_length=256, description="of this run and its descendants")] = None,
        status: Annotated[ApprovalStatus | None, Query()] = None,
    ) -> Response:
        """What people were asked, oldest first."""
        query = ListQuery(limit=limit, cursor=cursor, descending=order == "desc", run_id=run_id, status=status)
        return _listing("approvals", await self._rows.approvals(_user(request), query))

    async def decide(self, request: Request, approval_id: str) -> Response:
        """Approves, denies or answers; the same again is no conflict."""
        user_id = _user(request)
        _, body = await self._body(request, DecisionBody)
        answer = answer_of(await self._approval(user_id, approval_id), body)
        done: Answered = await self._log.append(commands.resolve_approval(user_id, approval_id, answer))
        if not done.taken:
            raise AlreadyDecided(f"The approval {approval_id} is {done.status}.")
        return _resource(await self._approval(user_id, approval_id))

    # --- under a thread -----------------------------------------------------------------------------------------

    async def list_messages(
        self,
        request: Request,
        thread_id: str,
        limit: Limit = PAGE_ROWS_DEFAULT,
        cursor: Cursor = None,
        order: Order = None,
        role: Annotated[Literal["user", "assistant"] | None, Query()] = None,
        status: Annotated[Literal["streaming", "completed", "partial", "superseded"] | None, Query()] = None,
        run_id: Text = None,
        children: Flag = False,
        superseded: Flag = False,
    ) -> Response:
        query = ListQuery(
            limit=limit,
            cursor=cursor,
            descending=order == "desc",
            thread_id=thread_id,
            role=role,
            status=status,
            run_id=run_id,
            children=children,
            superseded=superseded,
        )
        return _listing("messages", await self._rows.messages(_user(request), query))

    async def list_actions(
        self,
        request: Request,
        thread_id: str,
        limit: Limit = PAGE_ROWS_DEFAULT,
        cursor: Cursor = None,
        order: Order = None,
        status: Annotated[Literal["pending", "success", "error", "interrupted"] | None, Query()] = None,
        run_id: Text = None,
        children: Flag = False,
    ) -> Response:
        query = ListQuery(
            limit=limit,
            cursor=cursor,
            descending=order == "desc",
            thread_id=thread_id,
            status=status,
            run_id=run_id,
            children=children,
        )
        return _listing("actions", await self._rows.actions(_user(request), query))

    async def get_state(self, request: Request, thread_id: str) -> Response:
        """The public keys of the thread's state."""
        state, head = await self._rows.state(_user(request), thread_id, private=False)
        return JSONResponse({"state": state, "head": head})

    # --- events -----------------------------------------------------------------------------------------------

    async def thread_events(
        self,
        request: Request,
        thread_id: str,
        after: Seq = None,
        before: Seq = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
        types: Annotated[str | None, Query(max_length=2000, description="event types, comma-separated")] = None,
        run_id: Text = None,
        generation: Text = None,
    ) -> Response:
        """A page of the thread's events, or a live stream with `Accept: text/event-stream`."""
        thread = await self._log.find(_user(request), thread_id)
        family = None
        if run_id is not None:
            family = await self._family(request, run_id)
        asked = _Asked.of(request, after=after, before=before, limit=limit, types=types, generation=generation)
        self._check_generation(asked)
        if asked.live:
            return EventStream(self._shared, thread, Filter(asked.types, family), after=asked.after, until_run=None)
        return await self._page(thread, asked, family, first=0)

    async def run_events(
        self,
        request: Request,
        run_id: str,
        after: Seq = None,
        before: Seq = None,
        limit: Limit = PAGE_ROWS_DEFAULT,
        types: Annotated[str | None, Query(max_length=2000, description="event types, comma-separated")] = None,
        generation: Text = None,
    ) -> Response:
        """The same of one run and its children; a stream ends after the run's end."""
        run = await self._run(_user(request), run_id)
        family = await self._family(request, run_id)
        asked = _Asked.of(request, after=after, before=before, limit=limit, types=types, generation=generation)
        self._check_generation(asked)
        thread = ThreadRef(run.thread_id, _user(request))
        if not asked.live:
            return await self._page(thread, asked, family, first=run.first_seq - 1)
        if run.last_seq is not None and asked.after >= run.last_seq:
            head = await self._log.head(thread)
            if asked.after > head:
                raise CursorAhead(f"The cursor {asked.after} is beyond the thread's head {head}.")
            return Response(status_code=204)
        return EventStream(
            self._shared,
            thread,
            Filter(asked.types, family),
            after=max(asked.after, run.first_seq - 1),
            until_run=run_id,
        )

    async def _page(self, thread: ThreadRef, asked: _Asked, family: frozenset[str] | None, *, first: int) -> Response:
        head = await self._log.head(thread)
        if asked.after > head:
            raise CursorAhead(f"The cursor {asked.after} is beyond the thread's head {head}.")
        if asked.before is None:
            page = await self._log.read(thread, after=max(asked.after, first), limit=asked.limit)
        else:
            page = await self._log.read_before(thread, before=asked.before, limit=asked.limit)
        events = [
            event
            for event in page.events
            if (asked.types is None or event.type in asked.types) and (family is None or event.run_id in family)
        ]
        return _event_page(events, page, max(head, page.last), self._log.generation)

    async def _family(self, request: Request, run_id: str) -> frozenset[str]:
        family = await self._rows.family(_user(request), run_id)
        if not family:
            raise NotFound(f"There is no run {run_id}.")
        return family

    def _check_generation(self, asked: _Asked) -> None:
        if asked.generation is not None and asked.generation != self._log.generation:
            raise GenerationChanged("The store has been restored: its history is another one.")

    # --- the pieces -------------------------------------------------------------------------------------------

    async def _body(self, request: Request, model: type[B]) -> tuple[dict[str, values.Json], B]:
        value = await bodies.read(request)
        return value, bodies.validate(model, value)

    async def _thread(self, user_id: str, thread_id: str) -> Thread:
        thread = await self._rows.thread(user_id, thread_id)
        if thread is None:
            raise NotFound(f"There is no thread {thread_id}.")
        return thread

    async def _run(self, user_id: str, run_id: str) -> Run:
        run = await self._rows.run(user_id, run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        return run

    async def _approval(self, user_id: str, approval_id: str) -> Approval:
        approval = await self._rows.approval(user_id, approval_id)
        if approval is None:
            raise NotFound(f"There is no approval {approval_id}.")
        return approval


class _Asked(msgspec.Struct, frozen=True):
    """What a request for events asks for."""

    live: bool
    after: int
    before: int | None
    limit: int
    types: frozenset[str] | None
    generation: str | None

    @classmethod
    def of(
        cls,
        request: Request,
        *,
        after: int | None,
        before: int | None,
        limit: int,
        types: str | None,
        generation: str | None,
    ) -> _Asked:
        live = _wants_stream(request)
        if before is not None and (after is not None or live):
            raise Invalid.at("before", "goes with neither after nor a stream")
        last = request.headers.get("last-event-id") if live else None
        if last:
            if not (last.isascii() and last.isdigit() and len(last) <= len(str(CURSOR_MAX))):
                raise Invalid.at("Last-Event-ID", "must be a seq")
            after = cursor_of(int(last))
        wanted = None if types is None else types_of(types.split(","))
        return cls(live, after or 0, before, limit, wanted, generation)


def _user(request: Request) -> str:
    user_id: str = request.scope[USER_KEY]
    return user_id


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _sibling(request: Request, name: str) -> str:
    return request.url.path.rsplit("/", 1)[0] + "/" + name


def _ends(events: Any, run_id: str) -> bool:
    return any(event.run_id == run_id and event.type in TERMINAL_EVENTS for event in events)


def _resource(resource: Resource, status: int = 200) -> Response:
    exclude = {"interrupted"} if isinstance(resource, Run) and resource.interrupted is None else None
    return Response(resource.model_dump_json(exclude=exclude), status, media_type="application/json")


def _listing(plural: str, page: Listing[Any], more: Mapping[str, values.Json] | None = None) -> Response:
    items = ",".join(
        item.model_dump_json(exclude={"interrupted"} if isinstance(item, Run) else None) for item in page.items
    )
    rest: dict[str, values.Json] = {"next_cursor": page.next_cursor, **(more or {})}
    if page.head is not None:
        rest["head"] = page.head
    tail = values.encode(rest)[1:].decode()
    return Response(f'{{"{plural}":[{items}],{tail}', media_type="application/json")


def _event_page(events: list[Event], page: Page, head: int, generation: str) -> Response:
    rest = values.encode({"next_after": page.last, "head": head, "generation": generation})[1:]
    body = b'{"events":[' + b",".join([event.wire for event in events]) + b"]," + rest
    return Response(body, media_type="application/json")
