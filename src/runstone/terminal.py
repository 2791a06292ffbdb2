"""Shows a log to a person at a terminal, as it happens: text, reasoning, tools at work, how it ended.

`View` folds events into lines that stand and a picture of what is under way; it knows no terminal. `show`
draws them: with a live region below the text on a terminal, as plain text anywhere else.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runstone.client import Event
from runstone.clock import Clock, to_datetime
from runstone.service import Tasks, every
from runstone.values import Json

FRAME_S = 0.05  # between two pictures: smooth to the eye, and cheap at any number of events
OPEN_CHARS_MAX = 4_000  # of a line that has not ended: about a screen; longer ones are broken at a space
TOOL_LINES_SHOWN = 5  # of a tool's live output, so that it never pushes the text off the screen
TOOL_TAIL_CHARS_MAX = 2_000  # of its last line, which may never end
SUMMARY_CHARS_MAX = 100  # of inputs and outputs in one line
OUTPUT_CHARS_MAX = 2_000  # of an error, or of a run's output that was not said
SAID_CHARS_MAX = 200  # of the end of a run's text: enough to know its output again

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links, device strings
    r"|\x1b[ -/]*[0-Z\\^-~]"  # two-character escapes
)
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def clean(text: str) -> str:
    """The text without anything that a terminal would obey: escapes and control codes but newline and tab."""
    return _ESCAPES.sub("", text).translate(_CONTROLS)


@dataclass(frozen=True)
class Line:
    """A line that stands. `end` is empty where only its length broke it."""

    text: str
    style: str = ""
    end: str = "\n"
    message: str = ""  # the id of the message that says it, or of the question that it is about


@dataclass
class _Open:
    """A part of a message while it streams: what came since its last newline, as it came."""

    part: int
    style: str
    text: str = ""


@dataclass
class _Tool:
    name: str
    label: str
    started: datetime
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=TOOL_LINES_SHOWN))
    tail: str = ""
    skipped: int = 0

    def write(self, delta: str) -> None:
        *ends, tail = (self.tail + delta).split("\n")
        for end in ends:
            self.skipped += len(self.lines) == self.lines.maxlen
            self.lines.append(_overwritten(end))
        self.tail = tail[-TOOL_TAIL_CHARS_MAX:]

    def shown(self) -> Iterator[str]:
        """The last lines of its output."""
        if self.skipped:
            yield f"… {self.skipped} lines before"
        yield from self.lines
        if tail := _overwritten(self.tail):
            yield tail


@dataclass
class _Run:
    agent: str
    queued: datetime
    started: datetime | None = None
    said: dict[str, str] = field(default_factory=dict)  # the end of each message, to know whether its output was said


@dataclass(frozen=True)
class _Asked:
    run_id: str
    prompt: str


class View:
    """What a person sees of a log. `fold` takes every event once, in order, and returns what now stands.

    What is still under way is in `tools`, `runs`, `asked` and `open_text`. `where` is how commands that are shown name
    the server. A view that holds gives nothing out until its
    `release`: so what is superseded by then is never shown.
    """

    def __init__(self, where: str = "") -> None:
        self._where = where
        self.seq = 0  # of the last event folded: where to come back to
        self.ended: Event | None = None  # the last terminal event
        self.tools: dict[str, _Tool] = {}  # at work, by action
        self.runs: dict[str, _Run] = {}  # unfinished
        self.asked: dict[str, _Asked] = {}  # open, by approval
        self._open: dict[str, _Open] = {}  # by message
        self._held: list[Line] | None = None  # what stands, and is not to be shown yet
        self._begun: set[str] = set()  # messages that began while it was held
        self._superseded: set[str] = set()  # those that ended so, then
        self._dead: dict[str, str] = {}  # of runs between two attempts: what became of the first

    @property
    def holding(self) -> bool:
        return self._held is not None

    def hold(self) -> None:
        """From now on: keeps what stands, to be released at once."""
        self._held = []

    def release(self) -> list[Line]:
        """What was held and is still valid."""
        held = [line for line in self._held or () if line.message not in self._superseded]
        self._held = None
        return held

    def open_text(self) -> list[Line]:
        """The beginnings of lines that still grow."""
        return [Line(clean(part.text), part.style) for part in self._open.values() if part.text]

    def fold(self, event: Event) -> list[Line]:
        self.seq = event.seq
        lines: list[Line] = []
        if (handler := _HANDLERS.get(event.type)) is not None:
            lines = list(handler(self, event))
        elif event.type in _NOTES:
            lines = list(self._note(event))
        if self._held is None:
            return lines
        self._held += lines
        return []

    def close(self) -> list[Line]:
        """What was still held or open, to stand as it is."""
        return [*self.release(), *self._flush()]

    # --- text

    def _delta(self, event: Event) -> Iterator[Line]:
        style = "dim italic" if event.type == "agent_thinking" else ""
        message, part = _text(event, "message_id"), _number(event, "part")
        open = self._open.get(message)
        if open is None or open.part != part:
            yield from self._flush(message)
            open = self._open[message] = _Open(part, style)
        delta = _text(event, "delta")
        if event.type == "message_delta" and (run := self.runs.get(event.run_id or "")) is not None:
            run.said[message] = (run.said.get(message, "") + delta)[-SAID_CHARS_MAX:]
        *ends, open.text = (open.text + delta).split("\n")
        for end in ends:
            yield Line(clean(end), style, message=message)
        while len(open.text) > OPEN_CHARS_MAX:
            at = open.text.rfind(" ", 0, OPEN_CHARS_MAX) + 1 or OPEN_CHARS_MAX
            yield Line(clean(open.text[:at]), style, end="", message=message)
            open.text = open.text[at:]

    def _flush(self, message: str | None = None) -> Iterator[Line]:
        """Ends the open line of one message, or of all, because something else comes after it."""
        for name in [message] if message is not None else list(self._open):
            if (open := self._open.get(name)) is not None and open.text:
                yield Line(clean(open.text), open.style, message=name)
                open.text = ""

    def _message_started(self, event: Event) -> Iterator[Line]:
        if self.holding:
            self._begun.add(_text(event, "message_id"))
        yield from ()

    def _message_completed(self, event: Event) -> Iterator[Line]:
        message = _text(event, "message_id")
        yield from self._flush(message)
        self._open.pop(message, None)
        if event.data.get("status") == "partial":
            reason = clean(_text(event, "reason")) or "unfinished"
            yield Line(f"… the text ends here: {reason}", "yellow", message=message)

    def _user_message(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        for part in _items(event.data.get("parts")):
            text = part.get("text")
            for line in (text if isinstance(text, str) else _part(part)).split("\n"):
                yield Line(f"> {clean(line)}", "bold")

    def _message_part(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        value = event.data.get("value")
        shown = _part(value if isinstance(value, dict) else {})
        yield Line(f"▪ {shown}", "blue", message=_text(event, "message_id"))

    # --- tools

    def _tool_executing(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        name = _text(event, "tool")
        label = f"{name}({_arguments(event.data.get('input'))})"
        if event.data.get("private") is True:
            name = label = "a private tool"
        self.tools[_text(event, "action_id")] = _Tool(clean(name), clean(label), event.time)

    def _tool_output(self, event: Event) -> Iterator[Line]:
        if (tool := self.tools.get(_text(event, "action_id"))) is not None:
            tool.write(_text(event, "delta"))
        yield from ()

    def _retrying(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        tool = self.tools.get(_text(event, "action_id"))
        error = event.data.get("error")
        why = _summary(error.get("type")) if isinstance(error, dict) else ""
        when = f"; again in {duration(_number(event, 'delay_ms') / 1000)}" if "delay_ms" in event.data else ""
        yield Line(f"↻ {tool.name if tool else 'a tool'} failed{why and f' ({why})'}{when}", "yellow")

    def _tool_completed(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        # A view that starts in the middle of a run has not seen its tools begin.
        tool = self.tools.pop(_text(event, "action_id"), None) or _Tool("a tool", "a tool", event.time)
        if event.data.get("private") is True:
            yield Line(f"· {tool.label}", "dim")  # how it ended, and when it began, is private too
            return
        status = _text(event, "status")
        mark, style = {"success": ("✓", "green"), "interrupted": ("■", "yellow")}.get(status, ("✗", "red"))
        error = event.data.get("error")
        result = _error(error) if error else _summary(event.data.get("output"))
        took = duration(_number(event, "duration_ms") / 1000)
        yield Line(f"{mark} {tool.label}  {took}{'  ' + result if result else ''}", style)
        for line in tool.shown():
            yield Line(f"    {line}", "dim")

    # --- questions to people

    def _approval_requested(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        approval_id, prompt = _text(event, "approval_id"), _one_line(_text(event, "prompt"))
        self.asked[approval_id] = _Asked(event.run_id or "", prompt)
        about = _arguments(event.data.get("input"))
        yield Line(f"? {prompt}{about and f'  {about}'}", "yellow")
        ways = "  or --deny" if _text(event, "kind") == "approval" else f" {_answer_option(event.data.get('schema'))}"
        until = _text(event, "expires_at")[:16].replace("T", " ")
        command = f"    runstone approve {clean(approval_id)}{ways}{self._where}  (until {clean(until)} UTC)"
        yield Line(command, "dim", message=approval_id)

    def _approval_resolved(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        approval_id, decision = _text(event, "approval_id"), clean(_text(event, "decision"))
        asked = self.asked.pop(approval_id, None)
        if self.holding:
            self._superseded.add(approval_id)  # nobody has to be told how to answer it
        mark, style = {"approved": ("✓", "green"), "answered": ("✓", "green")}.get(decision, ("■", "yellow"))
        by, comment = clean(_text(event, "by")), _summary(event.data.get("comment"))
        value = f": {_summary(event.data['value'])}" if event.data.get("value") is not None else ""
        who, why = by and f" by {by}", comment and f" ({comment})"
        yield Line(f"{mark} {asked.prompt if asked else 'a question'}  {decision}{who}{value}{why}", style)

    # --- runs

    def _run_queued(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        agent = clean(_text(event, "agent"))
        self.runs[event.run_id or ""] = _Run(agent, event.time)
        yield Line(f"▶ {agent}  {event.run_id}", "dim")

    def _agent_started(self, event: Event) -> Iterator[Line]:
        run = self.runs.setdefault(event.run_id or "", _Run(clean(_text(event, "agent")), event.time))
        run.started = run.started or event.time
        if (before := self._dead.pop(event.run_id or "", None)) is not None:
            yield from self._flush()
            yield Line(f"— {before}; attempt {event.attempt} goes on —", "yellow")

    def _attempt_superseded(self, event: Event) -> Iterator[Line]:
        """What was shown stays where it is, and is said to be superseded; what is held is dropped."""
        yield from self._flush()
        named = event.data.get("messages")
        messages = {id for id in named if isinstance(id, str)} if isinstance(named, list) else set()
        run = self.runs.get(event.run_id or "")
        for message in messages:
            self._open.pop(message, None)
            if run is not None:
                run.said.pop(message, None)
        shown = messages
        if self.holding:
            self._superseded |= messages
            shown = messages - self._begun
        whose = f" of {run.agent}" if run is not None and len(self.runs) > 1 else ""
        before = f"attempt {_number(event, 'attempt')}{whose} was {clean(_text(event, 'reason'))} here"
        self._dead[event.run_id or ""] = before + "; what it said is superseded" * bool(shown)

    def _ended(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        self.ended = event
        run = self.runs.pop(event.run_id or "", None)
        started = run and (run.started or run.queued)
        took = f" in {duration((event.time - started).total_seconds())}" if started else ""
        match event.type:
            case "agent_completed":
                if run is not None:
                    yield from _unsaid(event.data.get("output"), "".join(run.said.values()))
                yield Line(f"✓ completed{took}{_usage(event.data.get('usage'))}", "green")
            case "agent_failed":
                yield Line(f"✗ failed{took}: {_error(event.data.get('error'))}", "red")
                yield from _advice(event.data.get("error"))
            case _:
                by, reason = _text(event, "by"), _text(event, "reason")
                who, why = by and f" by {by}", reason and f": {reason}"
                yield Line(f"■ cancelled{took}{clean(who + why)}", "yellow")

    # --- all else, in one line

    def _note(self, event: Event) -> Iterator[Line]:
        yield from self._flush()
        style, text = _NOTES[event.type]
        yield Line(" ".join(clean(text(event)).split("\n")), style)


_HANDLERS: dict[str, Callable[[View, Event], Iterator[Line]]] = {
    "user_message": View._user_message,
    "run_queued": View._run_queued,
    "agent_started": View._agent_started,
    "attempt_superseded": View._attempt_superseded,
    "message_started": View._message_started,
    "message_delta": View._delta,
    "agent_thinking": View._delta,
    "message_part": View._message_part,
    "message_completed": View._message_completed,
    "tool_executing": View._tool_executing,
    "tool_output": View._tool_output,
    "agent_retrying": View._retrying,
    "tool_completed": View._tool_completed,
    "approval_requested": View._approval_requested,
    "approval_resolved": View._approval_resolved,
    "agent_completed": View._ended,
    "agent_failed": View._ended,
    "agent_cancelled": View._ended,
}

# Events that are one line each; what stands in neither table is not for this view.
_NOTES: dict[str, tuple[str, Callable[[Event], str]]] = {
    "thread_deleted": ("yellow", lambda event: "■ the thread was deleted"),
    "step_completed": ("dim", lambda event: f"· step {_text(event, 'key')}".rstrip()),
    "cancel_requested": ("yellow", lambda event: f"■ stopping {_text(event, 'reason')}".rstrip()),
    "artifact_created": ("blue", lambda event: f"▪ {_text(event, 'name')}"),
    "custom": ("cyan", lambda event: f"◆ {_text(event, 'name')}  {_summary(event.data.get('value'))}"),
}


# --- what people read of a value; an event's data is as its writer made it, so nothing is taken for granted


def _text(event: Event, name: str) -> str:
    value = event.data.get(name)
    return value if isinstance(value, str) else ""


def _number(event: Event, name: str) -> int:
    value = event.data.get(name)
    return value if isinstance(value, int) else 0


def _one_line(text: str) -> str:
    return _summary(text, OUTPUT_CHARS_MAX)


def _answer_option(schema: Json) -> str:
    return "--answer TEXT" if isinstance(schema, dict) and schema.get("type") == "string" else "--json-answer JSON"


def _items(value: Json) -> list[dict[str, Json]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _part(value: dict[str, Json]) -> str:
    """A part of a message that is not text."""
    names = [value.get(name) for name in ("type", "name", "title", "url", "artifact_id", "media_type")]
    said = clean(" ".join(name for name in names if isinstance(name, str)).replace("\n", " "))
    return f"{said} {_summary(value['value'])}" if "value" in value else said


def _summary(value: Json, chars_max: int = SUMMARY_CHARS_MAX) -> str:
    """A value in one line."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    line = " ".join(clean(text[: chars_max * 4]).split())
    return line if len(line) <= chars_max and len(text) <= chars_max * 4 else f"{line[: chars_max - 1]}…"


def _arguments(value: Json) -> str:
    if not isinstance(value, dict):
        return _summary(value)
    return _summary(", ".join(f"{name}={msgspec.json.encode(item).decode()}" for name, item in value.items()))


def _unsaid(output: Json, said: str) -> Iterator[Line]:
    """A run's output, unless it is the text that was said."""
    if isinstance(output, str) and said.strip().endswith(output.strip()[-SAID_CHARS_MAX // 2 :]):
        return
    if output is not None:
        yield Line(_summary(output, OUTPUT_CHARS_MAX))


def _error(value: Json) -> str:
    if not isinstance(value, dict):
        return _summary(value)
    type, message = value.get("type"), value.get("message")
    return _summary(f"{type}: {message}" if message else f"{type}", OUTPUT_CHARS_MAX)


def _advice(error: Json) -> Iterator[Line]:
    if isinstance(error, dict):
        if isinstance(id := error.get("id"), str):
            yield Line(f"  More in the server's log: {clean(id)}", "dim")
        if error.get("retryable") is True:
            yield Line("  It may work when started again.", "dim")


def _usage(value: Json) -> str:
    """Tokens and cost over all attempts, where a model was asked."""
    if not isinstance(value, dict):
        return ""
    counts = [(value.get("input_tokens"), "in"), (value.get("output_tokens"), "out")]
    said = [f"{count:,} tokens {name}" for count, name in counts if isinstance(count, int) and count]
    if isinstance(cost := value.get("cost"), int | float) and cost:
        said.append(f"{cost:.4f} cost")
    return f"  {', '.join(said)}" if said else ""


def duration(seconds: float) -> str:
    seconds = max(seconds, 0.0)  # the writer's clock may be ahead of ours
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {seconds % 60:.0f} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _overwritten(line: str) -> str:
    """A line of output as a terminal would leave it: progress bars write over themselves with CR."""
    return clean(line.rstrip("\r").rpartition("\r")[2])


# --- drawing


async def show(
    events: AsyncIterator[Event],
    view: View,
    console: Console,
    clock: Clock,
    connected: Callable[[], bool] = lambda: True,
    when_caught_up: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Draws the events until they end or this is cancelled; then everything folded stands on the screen.

    Where it is told when the events have caught up with the log, it draws nothing of the log before that.
    """
    if when_caught_up is not None:
        view.hold()
    if console.is_terminal:
        await _show_live(events, view, console, clock, connected, when_caught_up)
        return
    if when_caught_up is not None:
        when_caught_up(lambda: _write(console, view.release()))
    try:
        async for event in events:
            _write(console, view.fold(event))
    finally:
        _write(console, view.close())


def _write(console: Console, lines: list[Line]) -> None:
    console.file.write("".join(line.text + line.end for line in lines))
    console.file.flush()


async def _show_live(
    events: AsyncIterator[Event],
    view: View,
    console: Console,
    clock: Clock,
    connected: Callable[[], bool],
    when_caught_up: Callable[[Callable[[], None]], None] | None,
) -> None:
    waiting: list[Line] = []  # lines that stand, for the next picture: printing each would redraw all of it
    if when_caught_up is not None:
        when_caught_up(lambda: waiting.extend(view.release()))
    ticking = Tasks("terminal")
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(below: Group) -> None:
            live.update(below)
            if not waiting:
                live.refresh()
                return
            text = Text("\n").join(Text(line.text, line.style) for line in waiting)
            waiting.clear()
            console.print(text, soft_wrap=True)  # above the live region, which it draws again

        async def tick() -> None:
            draw(_picture(view, console, clock, connected()))

        _ = ticking.start(every(FRAME_S, tick), "draw")
        try:
            async for event in events:
                waiting += view.fold(event)
        finally:
            await ticking.stop()
            waiting += view.close()
            draw(Group())


def _picture(view: View, console: Console, clock: Clock, connected: bool) -> Group:
    """What is under way, in no more rows than the screen has."""
    now = to_datetime(clock.now_us())
    mark = _SPINNER[clock.now_us() // 100_000 % len(_SPINNER)]
    hint = "Ctrl-C leaves; what runs goes on" if connected else "no connection; trying again …"
    if view.holding:
        return Group(Text(f"{mark} reading what there is, up to event {view.seq:,}" if connected else hint, "dim"))
    below = []
    for tool in view.tools.values():
        below.append(Text(f"{mark} {tool.label}  {_elapsed(now, tool.started)}", "cyan"))
        below += [Text(f"    {line}", "dim") for line in tool.shown()]
    asking = {asked.run_id for asked in view.asked.values()}
    for run_id, run in view.runs.items():
        state, since = ("running", run.started) if run.started else ("queued", run.queued)
        if run_id in asking:
            state = "waits for an answer"
        below.append(Text(f"{mark} {run.agent} {state} {_elapsed(now, since)}", "dim"))
    below = [*below, Text(hint, "dim")][-max(console.height - 2, 1) :]
    open = [Text(line.text, line.style) for line in view.open_text()]
    text = [row for line in open for row in line.wrap(console, console.width)]
    rows = max(console.height - 1 - len(below), 1)
    for row in below:
        row.no_wrap, row.overflow = True, "ellipsis"
    return Group(*text[-rows:], *below)


def _elapsed(now: datetime, since: datetime) -> str:
    return duration((now - since).total_seconds())
