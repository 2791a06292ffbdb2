"""The feed of a real server: the lists of two devices agree with the server's, whatever happens in between."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect

from runstone.log import FeedTail
from tests.log.support import Lossy
from tests.support.devices import SOON_S, Device, Resource, SocketDevice, SseDevice, by_id, following, listed
from tests.support.dice import dice
from tests.support.households import household, user
from tests.support.lively import app
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio

WITHIN_S = 5.0  # a second is promised, and printed; machines under test are slow
STREAM = {"accept": "text/event-stream"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.support.lively:app")
    yield process
    process.kill()
    log = process.log.read_text()
    assert "ASGI" not in log, log[-4000:]
    assert "a request failed" not in log, log[-4000:]
    assert "a background task died" not in log, log[-4000:]


@pytest.fixture
async def home(store_url: str) -> AsyncIterator[str]:
    """The URL of a server with users: alice, bob, and whoever else a header names."""
    async with household(app, store_url, heartbeat_s=0.2) as url:
        yield url


class Hand:
    """The third device: changes threads at random, and notes how long the others take to see it."""

    def __init__(self, http: httpx2.AsyncClient, throw: random.Random, *devices: Device) -> None:
        self._http = http
        self._throw = throw
        self._devices = devices
        self.threads: list[str] = []
        self.runs: list[str] = []
        self._seen: list[asyncio.Task[float]] = []
        self._asked: set[str] = set()

    async def change(self) -> None:
        create, rename, run, cancel, answer, delete = 3, 5, 4, 2, 2, 1
        deeds = [self._create, self._rename, self._run, self._cancel, self._answer, self._delete]
        weights = [create, rename, run, cancel, answer, delete]
        await self._throw.choices(deeds, weights if self.threads else [1, 0, 0, 0, 0, 0])[0]()

    async def _create(self) -> None:
        if len(self.threads) < 12:
            began = time.monotonic()
            made = await self._post("/v1/threads", title=f"thread {self._throw.random()}")
            self.threads.append(made["thread_id"])
            self._watch(began, made["thread_id"], made["updated_at"])

    async def _rename(self) -> None:
        thread_id, began = self._throw.choice(self.threads), time.monotonic()
        body = {"title": f"renamed {self._throw.random()}", "metadata": {"number": self._throw.random()}}
        changed = (await self._http.patch(f"/v1/threads/{thread_id}", json=body)).json()
        self._watch(began, thread_id, changed["updated_at"])

    async def _run(self) -> None:
        agent = self._throw.choice(["echo", "echo", "fails", "sleeper", "asker", "caller"])
        body: dict[str, object] = {"agent": agent, "message": "hello"}
        if agent not in {"echo", "caller"}:
            body["input"] = {}
        made = await self._post(f"/v1/threads/{self._throw.choice(self.threads)}/runs", **body)
        self.runs.append(made["run_id"])

    async def _cancel(self) -> None:
        if self.runs:
            await self._http.post(f"/v1/runs/{self._throw.choice(self.runs)}/cancel")

    async def _answer(self) -> None:
        for approval in (await self._http.get("/v1/approvals", params={"status": "open"})).json()["approvals"]:
            decision = self._throw.choice(["approve", "deny"])
            await self._http.post(f"/v1/approvals/{approval['approval_id']}", json={"decision": decision})
            self._asked.add(approval["approval_id"])

    async def _delete(self) -> None:
        thread_id, began = self._throw.choice(self.threads), time.monotonic()
        self.threads.remove(thread_id)
        assert (await self._http.delete(f"/v1/threads/{thread_id}")).status_code == 204
        self._watch(began, thread_id, "9")

    async def _post(self, path: str, **body: object) -> Resource:
        answer = await self._http.post(path, json=body)
        assert answer.is_success, answer.text
        found: Resource = answer.json()
        return found

    def _watch(self, began: float, thread_id: str, updated_at: str) -> None:
        async def seen(device: Device) -> float:
            try:
                return await device.until(lambda: device.at(thread_id, updated_at)) - began
            except TimeoutError:
                has = device.threads.get(thread_id)
                raise AssertionError(f"{type(device).__name__} has {has}, and not the change of {updated_at}") from None

        self._seen += [asyncio.create_task(seen(device)) for device in self._devices]

    async def rest(self) -> list[float]:
        """Ends all runs; returns the seconds that each change took to each device, in order."""
        while runs := [
            run
            for status in ("queued", "running", "waiting")
            for run in (await self._http.get("/v1/runs", params={"status": status})).json()["runs"]
        ]:
            for run in runs:
                await self._http.post(f"/v1/runs/{run['run_id']}/cancel")
                await self._http.get(f"/v1/runs/{run['run_id']}", params={"wait_s": 20}, timeout=30)
        return sorted(await asyncio.gather(*self._seen))


async def agree(http: httpx2.AsyncClient, *devices: Device) -> None:
    """Every device's list is the server's, member by member, once it is where the list was read."""
    threads, cursor = await listed(http)
    for device in devices:
        await device.until(lambda device=device: device.cursor == cursor)  # type: ignore[misc]
        assert device.threads == by_id(threads), type(device).__name__
        assert len(set(device.cursors)) == len(device.cursors), "a change came twice"


async def test_two_devices_agree_with_the_server_and_see_each_change_within_a_second(server: ServerProcess) -> None:
    server.start()
    sse, socket = SseDevice(), SocketDevice()
    async with (
        httpx2.AsyncClient(base_url=server.url, timeout=30) as http,
        asyncio.timeout(60),
        following(server.url, sse, socket),
    ):
        throw = dice("two devices")
        hand = Hand(http, throw, sse, socket)
        for _ in range(120):
            await hand.change()
            await asyncio.sleep(throw.expovariate(100))
        took = await hand.rest()
        await agree(http, sse, socket)
    sys.stdout.write(f"{len(took)} sightings: median {median(took):.3f} s, slowest {took[-1]:.3f} s\n")
    assert len(took) > 50
    assert took[-1] < WITHIN_S
    assert sse.connections == socket.connections == 1


async def test_devices_that_are_cut_at_random_miss_nothing_and_see_nothing_twice(server: ServerProcess) -> None:
    server.start()
    devices = [SseDevice(), SocketDevice(), SseDevice(), SocketDevice()]
    throw = dice("cut devices")

    async def keep_coming_back(device: Device) -> None:
        while True:
            following = asyncio.create_task(device.follow(server.url))
            try:
                if throw.random() < 0.8:  # the others may be cut before there is an answer
                    await device.connected.wait()
                await asyncio.wait({following}, timeout=throw.expovariate(15))
            finally:
                following.cancel()
                await asyncio.wait({following})
            if not following.cancelled():
                following.result()

    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http, asyncio.timeout(60):
        hand = Hand(http, throw, *devices)
        async with following(server.url, *devices):
            await hand.change()  # from now on they have something to lose, and are told what is deleted
        coming_back = [asyncio.create_task(keep_coming_back(device)) for device in devices]
        for _ in range(150):
            await hand.change()
            await asyncio.sleep(throw.expovariate(50))
        resting = asyncio.create_task(hand.rest())
        await asyncio.wait({resting, *coming_back}, return_when=asyncio.FIRST_COMPLETED)
        for task in coming_back:
            if task.done():
                task.result()
            task.cancel()
        await resting
        async with following(server.url, *devices):
            await agree(http, *devices)
    sys.stdout.write(f"connections: {[device.connections for device in devices]}\n")
    assert min(device.connections for device in devices) > 10


async def test_without_any_hint_changes_come_with_the_poll(store_url: str) -> None:
    sse, socket = SseDevice(), SocketDevice()
    async with (
        household(app, store_url, Lossy()) as url,
        httpx2.AsyncClient(base_url=url) as http,
        following(url, sse, socket),
    ):
        threads = [(await http.post("/v1/threads", json={"title": str(n)})).json()["thread_id"] for n in range(3)]
        began = time.monotonic()
        for device in (sse, socket):
            await device.until(lambda device=device: set(device.threads) == set(threads))  # type: ignore[misc]
        await http.patch(f"/v1/threads/{threads[0]}", json={"title": "new"})
        await http.delete(f"/v1/threads/{threads[1]}")
        await agree(http, sse, socket)
        took = time.monotonic() - began
    sys.stdout.write(f"two polls took {took:.3f} s\n")
    assert took < WITHIN_S


async def test_after_kill_9_the_cursors_are_good_and_what_happened_meanwhile_is_said(server: ServerProcess) -> None:
    server.start()
    away, here = SocketDevice(), SseDevice()
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http:
        ids = [(await http.post("/v1/threads", json={"title": str(n)})).json()["thread_id"] for n in range(6)]
        async with following(server.url, away):
            assert set(away.threads) == set(ids)
        seen_before = away.items
        async with following(server.url, here):
            await http.delete(f"/v1/threads/{ids[0]}")
            await http.patch(f"/v1/threads/{ids[1]}", json={"title": "renamed"})
            made = (await http.post("/v1/threads", json={"title": "new"})).json()["thread_id"]
            run = (await http.post(f"/v1/threads/{ids[2]}/runs", json={"agent": "asker", "input": {}})).json()
            await here.until(lambda: here.threads[ids[2]]["status"] == "waiting")
            server.kill()
        server.start()
        async with following(server.url, away, here):
            await agree(http, away, here)
            assert away.gone == here.gone == {ids[0]}
            assert away.items - seen_before == 4, "the changed ones, and no other"
            assert made in away.threads
            assert away.threads[ids[2]]["status"] == "waiting"
            await http.post(f"/v1/runs/{run['run_id']}/cancel")
            await away.until(lambda: away.threads[ids[2]]["status"] == "idle")
            await http.delete(f"/v1/threads/{ids[3]}")
            await agree(http, away, here)


async def test_a_thread_that_was_deleted_while_away_is_said_on_resume_and_not_to_a_new_device(home: str) -> None:
    async with httpx2.AsyncClient(base_url=home) as http:
        ids = [(await http.post("/v1/threads")).json()["thread_id"] for _ in range(3)]
        old = [SseDevice(), SocketDevice()]
        async with following(home, *old):
            pass
        await http.delete(f"/v1/threads/{ids[1]}")
        new = [SseDevice(), SocketDevice()]
        async with following(home, *old, *new):
            await agree(http, *old, *new)
        for device in old:
            assert device.gone == {ids[1]}
            assert device.items == 4
        for device in new:
            assert device.gone == set()
            assert device.items == 2


async def test_who_shows_the_list_goes_on_with_its_cursor_without_a_gap(home: str) -> None:
    async with httpx2.AsyncClient(base_url=home) as http:
        ids = [(await http.post("/v1/threads")).json()["thread_id"] for _ in range(5)]
        page = (await http.get("/v1/threads", params={"limit": 2})).json()
        await http.patch(f"/v1/threads/{ids[0]}", json={"title": "of a page that was not read yet"})
        await http.delete(f"/v1/threads/{ids[4]}")
        later = (await http.get("/v1/threads", params={"limit": 2, "cursor": page["next_cursor"]})).json()
        assert "feed" not in later, "a later page's would miss what came in between"
        for device in (SseDevice(after=page["feed"]), SocketDevice(after=page["feed"])):
            async with following(home, device):
                pass
            assert set(device.threads) == {ids[0]}
            assert device.gone == {ids[4]}


async def test_nobody_sees_anybody_elses_threads(home: str) -> None:
    alice, bob = (
        [SseDevice(user("alice")), SocketDevice(user("alice"))],
        [SseDevice(user("bob")), SocketDevice(user("bob"))],
    )
    async with (
        httpx2.AsyncClient(base_url=home, headers=user("alice"), timeout=30) as hers,
        httpx2.AsyncClient(base_url=home, headers=user("bob"), timeout=30) as his,
        following(home, *alice, *bob),
    ):
        before = (await his.post("/v1/threads", json={"title": "bob's"})).json()
        hand = Hand(hers, dice("isolation"), *alice)
        for _ in range(60):
            await hand.change()
        await hand.rest()
        await agree(hers, *alice)
        after = (await his.post("/v1/threads", json={"title": "bob's too"})).json()
        await agree(his, *bob)
        for device in bob:
            assert set(device.threads) == {before["thread_id"], after["thread_id"]}
            assert device.items == 2, "nothing was said of her deleted ones either"
        middle = alice[0].cursors[len(alice[0].cursors) // 2]
        stranger = SocketDevice(user("bob"), after=middle)
        async with following(home, stranger):
            assert set(stranger.threads) <= {after["thread_id"]}
            assert not stranger.gone


async def test_a_thread_that_changes_often_is_sent_less_often_and_ends_as_it_is(home: str) -> None:
    sse, socket = SseDevice(), SocketDevice()
    async with httpx2.AsyncClient(base_url=home) as http, following(home, sse, socket):
        path = f"/v1/threads/{(await http.post('/v1/threads')).json()['thread_id']}"
        for number in range(200):
            await http.patch(path, json={"title": str(number)})
        await agree(http, sse, socket)
    sys.stdout.write(f"200 changes became {sse.items} and {socket.items} items\n")
    for device in (sse, socket):
        assert device.items < 150


async def next_frame(socket: ClientConnection) -> Resource:
    """The next one but signs of life."""
    async with asyncio.timeout(SOON_S):
        while (frame := json.loads(await socket.recv())) == {"op": "pong"}:
            pass
    found: Resource = frame
    return found


# --- cursors -------------------------------------------------------------------------------------------------


def moved(cursor: str, **to: object) -> str:
    """The cursor of another place, made as no client should."""
    generation, positions = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    place = [to.get("generation", generation), to.get("positions", positions)]
    return base64.urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


async def test_a_cursor_that_cannot_be_honoured_is_refused_and_never_guessed(home: str) -> None:
    async with httpx2.AsyncClient(base_url=home, headers=STREAM) as http, connect(f"ws{home[4:]}/v1/ws") as socket:
        await next_frame(socket)
        await http.post("/v1/threads")
        good = (await http.get("/v1/threads")).json()["feed"]
        cases = {
            "garbage": (422, "invalid"),
            "": (422, "invalid"),
            good[:-3]: (422, "invalid"),
            good + "A": (422, "invalid"),
            "é" * 8: (422, "invalid"),
            "A" * 5000: (422, "invalid"),
            "17": (422, "invalid"),
            moved(good, positions=[[1, -1]]): (422, "invalid"),
            moved(good, positions=[[2, 1]]): (422, "invalid"),
            moved(good, positions=[]): (422, "invalid"),
            moved(good, positions=[[1, 2**70]]): (422, "invalid"),
            moved(good, positions=[[1, 2]]): (409, "cursor_ahead"),
            moved(good, generation="gen_before_the_restore"): (409, "generation_changed"),
        }
        for cursor, (status, code) in cases.items():
            answer = await http.get("/v1/feed", params={"after": cursor})
            assert (answer.status_code, answer.json()["code"]) == (status, code), cursor
            assert answer.json()["remedy"]
            await socket.send(json.dumps({"op": "feed", "id": 7, "after": cursor}))
            frame = await next_frame(socket)
            assert (frame["op"], frame["id"], frame["status"], frame["code"]) == ("error", 7, status, code), cursor
            if cursor and cursor.isascii():
                by_header = await http.get("/v1/feed", headers={"last-event-id": cursor}, params={"after": good})
                assert (by_header.status_code, by_header.json()["code"]) == (status, code), "the header wins"
                if status == 422:
                    assert by_header.json()["errors"][0]["path"] == "Last-Event-ID"
        await socket.send(json.dumps({"op": "feed", "id": 8, "after": 17}))
        assert (await next_frame(socket))["code"] == "invalid"
        await socket.send(json.dumps({"op": "feed", "id": 9, "after": good}))
        assert await next_frame(socket) == {"op": "ok", "id": 9}, "the socket stayed"


async def test_a_feed_without_the_header_of_a_stream_is_refused_instead_of_hanging(home: str) -> None:
    async with httpx2.AsyncClient(base_url=home) as http:
        answer = await http.get("/v1/feed", headers={"accept": "application/json"})
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "Accept")


# --- streams -------------------------------------------------------------------------------------------------


async def test_a_change_is_an_id_line_and_a_data_line_with_the_bytes_that_a_look_at_the_thread_gives(
    home: str,
) -> None:
    received = b""
    async with httpx2.AsyncClient(base_url=home, headers=STREAM) as http, asyncio.timeout(SOON_S):
        path = f"/v1/threads/{(await http.post('/v1/threads', json={'title': 'é'})).json()['thread_id']}"
        look = (await http.get(path)).content
        cursor = (await http.get("/v1/threads")).json()["feed"].encode()
        async with http.stream("GET", "/v1/feed") as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-store"
            async for chunk in response.aiter_raw():
                received += chunk
                if b": keep-alive\n\n" in received:
                    break
    assert received == (
        b'id: %b\ndata: %b\n\nevent: caught_up\ndata: {"cursor":"%b"}\n\n: keep-alive\n\n' % (cursor, look, cursor)
    )


async def test_a_second_feed_on_a_socket_takes_the_place_of_the_first(home: str) -> None:
    async with (
        httpx2.AsyncClient(base_url=home) as http,
        connect(f"ws{home[4:]}/v1/ws") as socket,
        asyncio.timeout(SOON_S),
    ):
        await next_frame(socket)
        path = f"/v1/threads/{(await http.post('/v1/threads')).json()['thread_id']}"
        await socket.send('{"op":"feed","id":1}')
        await socket.send('{"op":"feed","id":2}')
        said: list[Resource] = []
        while [frame["op"] for frame in said].count("caught_up") < 1 or {"op": "ok", "id": 2} not in said:
            said.append(await next_frame(socket))
        while said[-1]["op"] != "caught_up":
            said.append(await next_frame(socket))
        again = said[said.index({"op": "ok", "id": 2}) + 1 :]
        assert [frame["op"] for frame in again] == ["thread", "caught_up"]
        await http.patch(path, json={"title": "once"})
        changed = await next_frame(socket)
        assert (changed["op"], changed["thread"]["title"]) == ("thread", "once")
        await socket.send('{"op":"ping","id":3}')
        assert await next_frame(socket) == {"op": "pong", "id": 3}, "and it was said once"
        gc.collect()
        assert sum(isinstance(one, FeedTail) for one in gc.get_objects()) == 1, "the first is not kept"


async def test_a_feed_counts_as_a_stream_of_its_user(store_url: str) -> None:
    async with (
        household(app, store_url, sockets_a_user=1) as url,
        httpx2.AsyncClient(base_url=url, headers=STREAM) as http,
        following(url, SseDevice()),
    ):
        refused = await http.get("/v1/feed")
        assert (refused.status_code, refused.json()["code"]) == (429, "limited")
        async with following(url, SocketDevice(user("bob"))):
            pass


async def test_sigterm_ends_feeds_in_order_and_they_go_on_after_the_restart(server: ServerProcess) -> None:
    server.start()
    async with (
        httpx2.AsyncClient(base_url=server.url, headers=STREAM) as http,
        connect(f"{server.url.replace('http', 'ws')}/v1/ws") as socket,
        http.stream("GET", "/v1/feed") as response,
    ):
        await socket.send('{"op":"feed","id":1}')
        stopping = asyncio.create_task(asyncio.to_thread(server.terminate))
        received = b"".join([chunk async for chunk in response.aiter_raw()])
        await socket.wait_closed()
        assert await stopping == 0
    assert received.endswith(b'event: closing\ndata: {"reason":"restarting"}\n\n')
    assert socket.close_code == 1012
