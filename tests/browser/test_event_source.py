"""A browser's own EventSource and WebSocket follow a run, unchanged, across a kill of the server."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
import pytest

from tests.support.browser import CHROMIUM, HOW_TO_GET_IT, browser
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_GET_IT), pytest.mark.slow]

FOLLOW = """
new Promise((done, failed) => {
  window.events = [];
  window.opened = 0;
  const source = new EventSource(%s);
  source.onopen = () => { window.opened += 1; };
  source.onmessage = message => {
    const event = JSON.parse(message.data);
    if (message.lastEventId !== String(event.seq)) failed(new Error("id " + message.lastEventId));
    window.events.push(event);
    if (window.events.length === %d) done(window.events.map(event => event.seq));
  };
})
"""
UNTIL_END = """
new Promise(done => {
  const look = () => {
    const last = window.events.at(-1);
    if (["agent_completed", "agent_failed", "agent_cancelled"].includes(last.type)) done(
      [window.opened, window.events.map(event => [event.seq, event.type, event.data.delta ?? "", event.attempt ?? 0])]
    ); else setTimeout(look, 20);
  };
  look();
})
"""
OVER_A_SOCKET = """
new Promise((done, failed) => {
  const socket = new WebSocket(%s, "runstone.v1");
  const events = [];
  socket.onopen = () => socket.send(JSON.stringify({op: "subscribe", id: 1, thread_id: %s, after: 0}));
  socket.onerror = failed;
  socket.onmessage = message => {
    const frame = JSON.parse(message.data);
    if (frame.op === "events") events.push(...frame.events);
    if (frame.op === "caught_up") done(events.map(event => event.seq));
  };
})
"""


def _start(url: str, **input: object) -> dict[str, str]:
    run: dict[str, str] = (
        httpx2.post(f"{url}/v1/runs", json={"agent": "tokens", "input": input}).raise_for_status().json()
    )
    return run


def test_event_source_resumes_by_itself_when_the_server_is_killed_and_started_again(
    server: ServerProcess, tmp_path: Path
) -> None:
    server.start()
    run = _start(server.url, count=1000, delay_s=0.01)
    with browser(tmp_path) as page:
        page.open(f"{server.url}/healthz")  # any page of the server's own origin
        stream = json.dumps(f"/v1/runs/{run['run_id']}/events")
        first = page.evaluate(FOLLOW % (stream, 20))
        server.kill()
        server.start()
        opened, events = page.evaluate(UNTIL_END)

    seqs = [seq for seq, _, _, _ in events]
    messages = httpx2.get(f"{server.url}/v1/threads/{run['thread_id']}/messages").json()["messages"]
    assert opened >= 2, "the browser did not reconnect"
    assert seqs[: len(first)] == first
    assert seqs == list(range(seqs[0], seqs[-1] + 1)), "an event was lost or came twice"
    assert "attempt_superseded" in [kind for _, kind, _, _ in events]
    assert "".join(delta for _, _, delta, attempt in events if attempt == 2) == messages[-1]["content"]


def test_a_browsers_websocket_gets_the_whole_thread(server: ServerProcess, tmp_path: Path) -> None:
    server.start()
    run = _start(server.url, count=500)
    ended = httpx2.get(f"{server.url}/v1/runs/{run['run_id']}?wait_s=20").json()
    with browser(tmp_path) as page:
        page.open(f"{server.url}/healthz")
        socket = json.dumps(server.url.replace("http", "ws") + "/v1/ws")
        seqs = page.evaluate(OVER_A_SOCKET % (socket, json.dumps(run["thread_id"])))

    assert seqs == list(range(1, ended["last_seq"] + 1))
