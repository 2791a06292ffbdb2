"""The view shows what the log says, in its order, and nothing in it can take over the terminal."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from runstone.client import Event
from runstone.clock import SystemClock
from runstone.terminal import FRAME_S, OPEN_CHARS_MAX, TOOL_LINES_SHOWN, View, _picture, clean, duration, show
from runstone.values import Json

RUN = "run_1"
START = datetime(2026, 11, 20, 8, 15, 30, tzinfo=UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Log:
    """Makes events, one second apart."""

    def __init__(self) -> None:
        self.seq = 0

    def __call__(self, type: str, **data: Json) -> Event:
        self.seq += 1
        return Event(
            seq=self.seq,
            thread_id="thr_1",
            run_id=RUN,
            attempt=1,
            user_id="local",
            type=type,
            time=START + timedelta(seconds=self.seq),
            data=data,
            metadata=None,
            raw=None,
        )

    def say(self, text: str, part: int = 0, type: str = "message_delta") -> Event:
        return self(type, message_id="msg_1", part=part, offset=0, delta=text)


def shown(events: list[Event], view: View | None = None) -> str:
    view = view or View()
    lines = [line for event in events for line in view.fold(event)]
    return "".join(line.text + line.end for line in [*lines, *view.close()])


def test_text_stands_line_by_line_and_grows_in_between() -> None:
    log, view = Log(), View()
    assert view.fold(log.say("The sky")) == []
    assert [line.text for line in view.open_text()] == ["The sky"]
    assert [line.text for line in view.fold(log.say(" is\nblue"))] == ["The sky is"]
    assert [line.text for line in view.open_text()] == ["blue"]
    assert [line.text for line in view.fold(log("message_completed", message_id="msg_1", status="completed"))] == [
        "blue"
    ]
    assert view.open_text() == []


def test_reasoning_is_dimmed_and_ends_where_the_text_begins() -> None:
    log, view = Log(), View()
    view.fold(log.say("Hm.", 0, "agent_thinking"))
    [thought] = view.fold(log.say("Blue", 1))
    assert (thought.text, thought.style) == ("Hm.", "dim italic")
    assert [line.style for line in view.open_text()] == [""]


def test_a_tool_stands_below_the_text_that_came_before_it() -> None:
    log = Log()
    events = [
        log.say("Let me look."),
        log(
            "tool_executing",
            action_id="act_1",
            tool="search",
            input={"query": "sky", "n": 3},
            executor="server",
        ),
        log("tool_output", action_id="act_1", delta="10 %\r99 %\r\nfou"),
        log("tool_output", action_id="act_1", delta="nd"),
        log("tool_completed", action_id="act_1", status="success", output=["a", "b"], duration_ms=1200),
        log.say(" Found it."),
    ]
    assert shown(events).splitlines() == [
        "Let me look.",
        '✓ search(query="sky", n=3)  1.2 s  ["a","b"]',
        "    99 %",
        "    found",
        " Found it.",
    ]


def test_a_tool_is_at_work_until_it_completes() -> None:
    log, view = Log(), View()
    view.fold(log("tool_executing", action_id="act_1", tool="search", input=None, executor="server"))
    assert [tool.label for tool in view.tools.values()] == ["search()"]
    error: Json = {"type": "Timeout", "message": "30 s"}
    [line] = view.fold(log("tool_completed", action_id="act_1", status="error", error=error, duration_ms=5))
    assert (line.text, line.style) == ("✗ search()  5 ms  Timeout: 30 s", "red")
    assert view.tools == {}


def test_of_a_tools_output_the_last_lines_are_shown_and_the_others_counted() -> None:
    log, view = Log(), View()
    view.fold(log("tool_executing", action_id="act_1", tool="t", input=None, executor="server"))
    for number in range(100):
        view.fold(log("tool_output", action_id="act_1", delta=f"{number}\n"))
    [tool] = view.tools.values()
    assert list(tool.shown()) == [f"… {100 - TOOL_LINES_SHOWN} lines before", "95", "96", "97", "98", "99"]


def test_a_retry_says_what_failed_why_and_when_it_is_tried_again() -> None:
    log, view = Log(), View()
    view.fold(log.say("Let me look."))
    view.fold(log("tool_executing", action_id="act_1", tool="search", input={"query": "sky"}, executor="server"))
    error: Json = {"type": "TimeoutError", "message": "no answer from 10.0.0.7"}
    retrying: dict[str, Json] = {
        "action_id": "act_1",
        "try": 1,
        "error": error,
        "expected_recovery": "2026-11-20T08:15:32.000000Z",
    }
    [line] = view.fold(log("agent_retrying", **retrying, delay_ms=2000))
    assert (line.text, line.style) == ("↻ search failed (TimeoutError); again in 2.0 s", "yellow")
    [line] = view.fold(log("agent_retrying", **retrying, delay_ms=90_000))
    assert line.text == "↻ search failed (TimeoutError); again in 1 min 30 s"
    assert list(view.tools) == ["act_1"]


def test_a_retry_of_a_private_tool_or_of_one_that_began_earlier_shows_what_is_known() -> None:
    log, view = Log(), View()
    error: Json = {"type": "ConnectionError", "message": ""}
    [line] = view.fold(log("agent_retrying", action_id="act_0", delay_ms=700, error=error))
    assert line.text == "↻ a tool failed (ConnectionError); again in 700 ms"
    view.fold(log("tool_executing", action_id="act_1", private=True))
    [line] = view.fold(log("agent_retrying", action_id="act_1", private=True))
    assert line.text == "↻ a private tool failed"


def test_a_private_tool_shows_that_it_is_private_and_nothing_else() -> None:
    log = Log()
    events = [
        log("tool_executing", action_id="act_1", private=True),
        log("tool_output", action_id="act_1", private=True),
        log("tool_completed", action_id="act_1", private=True),  # as the wire has it: nobody is told how it ended
    ]
    assert shown(events) == "· a private tool\n"


def test_a_run_shows_its_beginning_its_end_and_what_it_used() -> None:
    log, view = Log(), View()
    usage: Json = {"input_tokens": 1234, "output_tokens": 56, "cost": 0.01}
    events = [
        log("run_queued", agent="researcher"),
        log("agent_started", agent="researcher", worker="w"),
        log.say("42"),
        log("agent_completed", output="42", usage=usage),
    ]
    assert shown(events, view).splitlines() == [
        "▶ researcher  run_1",
        "42",
        "✓ completed in 2.0 s  1,234 tokens in, 56 tokens out, 0.0100 cost",
    ]
    assert view.ended is not None
    assert view.seq == 4
    assert view.runs == {}


def test_an_output_that_was_not_said_is_shown() -> None:
    log = Log()
    said = [log("run_queued", agent="a"), log.say("Working.")]
    assert '{"answer":42}' in shown([*said, log("agent_completed", output={"answer": 42}, usage=None)])
    assert "The answer" in shown([*said, log("agent_completed", output="The answer", usage=None)])
    assert shown([*said, log("agent_completed", output="Working.", usage=None)]).count("Working.") == 1


def test_a_failure_shows_its_error_and_what_to_do() -> None:
    error: Json = {"type": "ValueError", "message": "no", "retryable": True, "id": "err_1"}
    text = shown([Log()("agent_failed", error=error)])
    assert "✗ failed: ValueError: no" in text
    assert "err_1" in text
    assert "started again" in text


def test_a_cancelled_run_shows_who_and_why_and_where_its_text_ends() -> None:
    log = Log()
    events = [
        log.say("half a"),
        log("cancel_requested", by="alice", reason="enough"),
        log("message_completed", message_id="msg_1", status="partial", reason="cancelled", length=6),
        log("agent_cancelled", by="alice", reason="enough"),
    ]
    assert shown(events).splitlines() == [
        "half a",
        "■ stopping enough",
        "… the text ends here: cancelled",
        "■ cancelled by alice: enough",
    ]


def two_attempts(log: Log, *, message: str = "msg_1") -> list[Event]:
    """A first attempt that dies while it speaks, and a second one that says it all."""
    return [
        log("run_queued", agent="a"),
        log("agent_started", agent="a", worker="w"),
        log("message_started", message_id="msg_1", role="assistant"),
        log.say("It is bl"),
        log("attempt_superseded", attempt=1, reason="lost", messages=[message] if message else []),
        replace(log("agent_started", agent="a", worker="w"), attempt=2),
        log("message_started", message_id="msg_2", role="assistant"),
        log("message_delta", message_id="msg_2", part=0, offset=0, delta="It is blue."),
        log("message_completed", message_id="msg_2", status="completed", length=11),
        log("agent_completed", output="It is blue.", usage=None),
    ]


def test_a_text_that_was_shown_is_said_to_be_superseded_where_the_next_attempt_begins() -> None:
    assert shown(two_attempts(Log())).splitlines() == [
        "▶ a  run_1",
        "It is bl",
        "— attempt 1 was lost here; what it said is superseded; attempt 2 goes on —",
        "It is blue.",
        "✓ completed in 8.0 s",
    ]


def test_an_attempt_whose_text_stands_is_said_to_be_lost_and_nothing_more() -> None:
    text = shown(two_attempts(Log(), message=""))
    assert "— attempt 1 was lost here; attempt 2 goes on —" in text
    assert "It is bl\n" in text


def test_what_is_superseded_when_the_log_is_caught_up_with_is_never_shown() -> None:
    events, view = two_attempts(Log()), View()
    view.hold()
    for event in events[:7]:
        assert view.fold(event) == []
    assert [line.text for line in view.release()] == ["▶ a  run_1", "— attempt 1 was lost here; attempt 2 goes on —"]
    assert shown(events[7:], view) == "It is blue.\n✓ completed in 8.0 s\n"


def test_a_text_that_is_valid_when_the_log_is_caught_up_with_is_shown_and_may_be_superseded_later() -> None:
    events, view = two_attempts(Log()), View()
    view.hold()
    for event in events[:4]:
        view.fold(event)
    assert [line.text for line in view.release()] == ["▶ a  run_1"]
    assert [line.text for line in view.open_text()] == ["It is bl"]
    assert "what it said is superseded" in shown(events[4:], view)


def test_a_text_that_began_before_the_log_was_looked_at_may_have_been_shown_and_is_said_to_be_superseded() -> None:
    events, view = two_attempts(Log()), View()
    view.hold()
    text = shown(events[3:], view)  # as `tail --after 3` sees it
    assert "what it said is superseded" in text
    assert "It is bl\n" not in text


def test_of_a_dead_attempt_only_what_is_named_is_dropped() -> None:
    log, view = Log(), View()
    view.hold()
    events = [
        log("message_started", message_id="msg_1", role="assistant"),
        log("message_started", message_id="msg_2", role="assistant"),
        log.say("Kept, for it was said in a step.\n"),
        log("message_delta", message_id="msg_2", part=0, offset=0, delta="Dropped,\n" + "x " * OPEN_CHARS_MAX),
        log("message_part", message_id="msg_2", part=1, value={"type": "data", "name": "dropped too"}),
        log("message_completed", message_id="msg_2", status="partial", reason="error", length=9),
        log("attempt_superseded", attempt=1, reason="released", messages=["msg_2"]),
        replace(log("agent_started", agent="a", worker="w"), attempt=2),
    ]
    assert shown(events, view).splitlines() == [
        "Kept, for it was said in a step.",
        "— attempt 1 was released here; attempt 2 goes on —",
    ]


def test_an_output_that_only_a_dead_attempt_said_is_shown() -> None:
    log = Log()
    events = [event for event in two_attempts(log) if event.data.get("message_id") != "msg_2"]
    events[3] = replace(events[3], data=events[3].data | {"delta": "It is blue."})
    view = View()
    view.hold()
    assert shown(events, view).splitlines()[-2:] == ["It is blue.", "✓ completed in 8.0 s"]


def test_what_a_person_said_is_shown_with_its_parts() -> None:
    parts: Json = [
        {"type": "text", "text": "two\nlines"},
        {"type": "file", "url": "https://a/b.csv", "media_type": "text/csv"},
    ]
    assert shown([Log()("user_message", parts=parts)]) == "> two\n> lines\n> file https://a/b.csv text/csv\n"


def test_a_line_without_end_is_broken_for_the_screen_and_whole_in_a_pipe() -> None:
    log, view = Log(), View()
    text = "word " * OPEN_CHARS_MAX
    assert shown([log.say(text[:7]), log.say(text[7:])], view) == text + "\n"
    view.fold(log.say("x" * 10 * OPEN_CHARS_MAX))
    assert len(view.open_text()[0].text) <= OPEN_CHARS_MAX


@pytest.mark.parametrize(
    ("evil", "harmless"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a", "a"),
        ("\x1b]8;;https://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Ja", "a"),
        ("\x1bca", "a"),
        ("\x1b[3", "[3"),
        ("\x1b]0;without an end", "]0;without an end"),
        ("a\x08\x7f\x00\x07b", "ab"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("🗿 é", "🗿 é"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_shown(evil: str, harmless: str) -> None:
    assert clean(evil) == harmless


@pytest.mark.parametrize(
    ("type", "name"),
    [("tool_executing", "tool"), ("run_queued", "agent"), ("custom", "name"), ("message_delta", "delta")],
)
def test_nothing_that_a_terminal_obeys_gets_through_a_name_or_a_text(type: str, name: str) -> None:
    log, view = Log(), View()
    lines = view.fold(log(type, **{name: "\x1b[2J\x07evil"}))
    lines += view.open_text()
    seen = [*(line.text for line in lines), *(tool.label for tool in view.tools.values())]
    seen += [run.agent for run in view.runs.values()]
    assert any("evil" in text for text in seen)
    assert all(text.isprintable() for text in seen)


TYPES = [
    "user_message", "run_queued", "agent_started", "attempt_superseded", "message_delta", "agent_thinking",
    "message_part", "message_completed", "tool_executing", "tool_output", "tool_completed", "step_completed",
    "approval_requested", "approval_resolved", "agent_retrying", "cancel_requested", "artifact_created",
    "custom", "agent_completed", "agent_failed", "agent_cancelled", "of_a_newer_server",
]  # fmt: skip
NAMES = [
    "message_id", "part", "delta", "parts", "value", "status", "reason", "agent", "tool", "input",
    "action_id", "output", "error", "usage", "name", "kind", "prompt", "by", "key", "duration_ms",
    "messages", "private",
]  # fmt: skip
EVIL = st.text(alphabet="a\n\r\t\0\x07\x1b\x9b\x7f[]0;m?\\ü")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | EVIL,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "message", "text", "url", "id", "input_tokens"]) | EVIL,
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(NAMES), VALUES)), max_size=8))
def test_whatever_an_event_holds_the_view_stands_and_the_terminal_is_safe(
    events: list[tuple[str, dict[str, Json]]],
) -> None:
    log, view = Log(), View()
    for type, data in events:
        lines = view.fold(log(type, **data))
        pictured = [line.text for line in view.open_text()] + [tool.label for tool in view.tools.values()]
        pictured += [line for tool in view.tools.values() for line in tool.shown()]
        pictured += [run.agent for run in view.runs.values()]
        text = "".join([*(line.text for line in lines), *pictured])
        assert all(character.isprintable() or character in "\n\t" for character in text)


async def stream(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


CONVERSATION = [("Hel", 0), ("lo\nworld", 0)]


@pytest.mark.anyio
async def test_a_pipe_gets_plain_text() -> None:
    log, out = Log(), io.StringIO()
    console = Console(file=out, force_terminal=False)
    await show(stream([log.say(*said) for said in CONVERSATION]), View(), console, SystemClock())
    assert out.getvalue() == "Hello\nworld\n"


@pytest.mark.anyio
@pytest.mark.parametrize("terminal", [False, True])
async def test_nothing_is_drawn_before_the_log_is_caught_up_with(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, height=20, legacy_windows=False)
    callbacks: list[Callable[[], None]] = []
    drawn: list[str] = []

    async def caught_up_after_seven() -> AsyncIterator[Event]:
        for event in two_attempts(Log()):
            if event.seq == 8:
                await asyncio.sleep(2 * FRAME_S)  # for pictures, if there were any to draw
                drawn.append(clean(out.getvalue()))
                callbacks.pop()()
            yield event

    await show(caught_up_after_seven(), View(), console, SystemClock(), when_caught_up=callbacks.append)
    assert "attempt" not in drawn[0]
    assert ("reading what there is, up to event 7" in drawn[0]) == terminal
    text = clean(out.getvalue())
    assert "attempt 2 goes on" in text
    assert "It is blue." in text
    assert "superseded" not in text


@pytest.mark.anyio
async def test_a_terminal_keeps_every_line_when_the_live_region_is_gone() -> None:
    log, out = Log(), io.StringIO()
    console = Console(file=out, force_terminal=True, width=40, height=10, legacy_windows=False)
    tool = log("tool_executing", action_id="act_1", tool="t", input=None, executor="server")
    await show(stream([*(log.say(*said) for said in CONVERSATION), tool]), View(), console, SystemClock())
    text = clean(out.getvalue())
    assert text.index("Hello") < text.index("world")
    assert text.endswith("world\n")


def test_a_question_shows_what_is_asked_and_the_command_that_answers_it() -> None:
    log, view = Log(), View(" --url http://there:8700")
    until = "2026-11-21T08:15:30.000000Z"
    asks: list[tuple[dict[str, Json], str]] = [
        ({"kind": "approval"}, "or --deny"),
        ({"kind": "question", "schema": {"type": "string"}}, "--answer TEXT"),
        ({"kind": "question", "schema": {"type": "integer"}}, "--json-answer JSON"),
    ]
    view.fold(log("run_queued", agent="a"))
    for number, (kind, option) in enumerate(asks):
        data: dict[str, Json] = {"approval_id": f"apr_{number}", "prompt": "Pay\n\x1b[31m?", "input": {"cents": 5}}
        first, second = view.fold(log("approval_requested", **data, **kind, expires_at=until))
        assert first.text == "? Pay ?  cents=5"
        spaces = "  " if kind["kind"] == "approval" else " "
        command = (
            f"    runstone approve apr_{number}{spaces}{option} --url http://there:8700  (until 2026-11-21 08:15 UTC)"
        )
        assert second.text == command
    assert list(view.asked) == ["apr_0", "apr_1", "apr_2"]
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    console.print(_picture(view, console, SystemClock(), True))
    assert "waits for an answer" in console.file.getvalue()  # type: ignore[attr-defined] # a StringIO


def test_an_answer_shows_who_gave_it_and_why() -> None:
    log, view = Log(), View()

    def decided(decision: str, **more: Json) -> str:
        view.fold(log("approval_requested", approval_id="apr_1", kind="approval", prompt="Pay?", input=None))
        [line] = view.fold(log("approval_resolved", approval_id="apr_1", decision=decision, **more))
        return line.text

    assert decided("approved", by="alice", comment="fine") == "✓ Pay?  approved by alice (fine)"
    assert decided("answered", by="alice", value=[1, 2]) == "✓ Pay?  answered by alice: [1,2]"
    assert decided("denied", by="bob") == "■ Pay?  denied by bob"
    assert decided("expired") == "■ Pay?  expired"
    assert view.asked == {}
    [line] = view.fold(log("approval_resolved", approval_id="apr_unseen", decision="denied", by="bob"))
    assert line.text == "■ a question  denied by bob"


def test_of_a_question_that_was_answered_before_it_is_shown_no_command_is_shown() -> None:
    log, view = Log(), View()
    view.hold()
    for number in (1, 2):
        view.fold(log("approval_requested", approval_id=f"apr_{number}", kind="approval", prompt="Pay?", input=None))
    view.fold(log("approval_resolved", approval_id="apr_1", decision="approved", by="alice"))
    assert [line.text.split("  or")[0] for line in view.release()] == [
        "? Pay?",
        "? Pay?",
        "    runstone approve apr_2",
        "✓ Pay?  approved by alice",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 ms"), (0.5, "500 ms"), (59.0, "59.0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (86_400 * 3, "3 d 0 h")],
)
def test_a_duration_is_told_in_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text
