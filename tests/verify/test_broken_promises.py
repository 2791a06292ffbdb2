"""Events that break a promise about attempts, families, steps and approvals are found, each by one finding."""

from __future__ import annotations

import pytest

from runstone import values
from tests.verify.conftest import Store
from tests.verify.history import Event, History, copy


@pytest.fixture
def log(store: Store) -> History:
    return History(store)


def found(log: History, check: str, *parts: object) -> None:
    """The one thing that is broken is found, and nothing else."""
    findings = log.broken()
    assert [finding.check for finding in findings] == [check], [finding.line() for finding in findings]
    line = findings[0].line()
    missing = [part for part in parts if str(part) not in line]
    assert not missing, line


def test_written_back_as_they_are_the_events_are_as_promised(log: History, store: Store) -> None:
    assert log.broken() == []
    assert store.findings() == []


# --- attempts --------------------------------------------------------------------------------------------


def superseded(log: History, run_no: int) -> Event:
    """The newest end of an attempt that was not the run's."""
    return log.of(run_no, "attempt_superseded")[-1]


def test_an_attempt_that_begins_without_superseding_the_one_before(log: History) -> None:
    run = log.run_no("helper", 1)  # it has left nothing open
    log.drop(superseded(log, run))
    found(log, "attempt", log.run_id(run), "attempt 3 starts, expected attempt_superseded of attempt 2 right before it")


def test_what_stands_between_the_end_of_an_attempt_and_the_next_one(log: History) -> None:
    run = log.run_no("survivor")
    end = superseded(log, run)
    log.insert(copy(end, type="thread_updated", run_no=None), after=end).data = {"by": "local", "title": "T"}
    found(log, "attempt", "attempt_superseded is followed by thread_updated, expected agent_started of the same run")


def test_an_attempt_that_is_superseded_by_none(log: History) -> None:
    end = superseded(log, log.run_no("survivor"))
    log.events = [event for event in log.events[: log.at(end) + 1] if event.thread_no == end.thread_no]
    findings = [finding.line() for finding in log.broken() if finding.check == "attempt"]
    assert len(findings) == 1
    assert "attempt_superseded is followed by nothing, expected agent_started of the same run" in findings[0]


def test_an_attempt_that_supersedes_another_than_the_newest(log: History) -> None:
    superseded(log, log.run_no("survivor")).data["attempt"] = 1
    found(log, "attempt", "attempt_superseded of attempt 1, expected attempt 2")


def test_a_list_that_leaves_a_message_out(log: History) -> None:
    gone = superseded(log, log.run_no("survivor")).data["messages"].pop(0)
    found(log, "superseded", f"the list leaves out {gone}, expected every message")


def test_a_list_that_names_a_message_twice(log: History) -> None:
    named = superseded(log, log.run_no("survivor")).data["messages"]
    named.append(named[0])
    found(log, "superseded", f"the list names {named[0]} a second time")


def kept(log: History) -> str:
    """A message that was said inside a step."""
    step = log.of(log.run_no("survivor"), "step_completed", key="inner")[0]
    return str(step.data["inner"][0])


def test_a_list_that_names_what_is_not_to_be_superseded(log: History) -> None:
    run = log.run_no("survivor")
    earlier = log.of(run, "attempt_superseded")[0].data["messages"][0]
    users = log.of(run, "user_message")[0].data["message_id"]
    childs = log.of(log.run_no("helper"), "message_started")[-1].data["message_id"]
    others = log.of(log.run_no("busy"), "message_started")[0].data["message_id"]
    messages = superseded(log, run).data["messages"]
    cases = {
        kept(log): "which was said inside a recorded step and stands",
        earlier: "which was superseded before",
        users: "which no attempt of this run has said",
        childs: "which no attempt of this run has said",
        others: "which no attempt of this run has said",
        "msg_x": "which no attempt of this run has said",
    }
    for message_id, why in cases.items():
        messages.append(message_id)
        found(log, "superseded", f"the list names {message_id} {why}")
        messages.pop()


def test_superseding_by_range(log: History) -> None:
    """All messages of the thread between the beginnings of two attempts, whoever said them and where."""
    run = log.run_no("survivor")
    end = log.of(run, "attempt_superseded")[0]
    before = log.events[: log.at(end)]
    end.data["messages"] = [
        event.data["message_id"]
        for event in before
        if event.type == "message_started" and event.thread_no == end.thread_no
    ]
    lines = [finding.line() for finding in log.broken() if finding.check == "superseded"]
    assert any(f"{kept(log)} which was said inside a recorded step" in line for line in lines)
    assert any("which no attempt of this run has said" in line for line in lines)


def test_an_action_that_an_attempt_leaves_pending(log: History) -> None:
    run = log.run_no("survivor")
    unsafe = log.of(run, "tool_executing", tool="once")[0].data["action_id"]
    log.drop(*log.of(run, "tool_completed", action_id=unsafe))
    found(log, "action", f"superseded while its action {unsafe} (once) is pending, expected it to be interrupted")


@pytest.mark.parametrize("kind", ["custom", "usage", "message_delta", "tool_executing", "step_completed"])
def test_what_only_an_attempt_writes_and_none_has_written(log: History, kind: str) -> None:
    log.of(log.run_no("survivor"), kind)[-1].attempt = None
    found(log, "attempt", f"{kind} without an attempt, expected attempt")


def test_words_of_an_attempt_after_the_next_one_has_begun(log: History) -> None:
    run = log.run_no("survivor")
    usage = log.of(run, "usage")[0]
    log.insert(copy(usage), after=log.of(run, "agent_started")[1])
    found(log, "attempt", log.run_id(run), "usage of attempt 1, expected attempt 2")


def test_a_message_that_goes_on_after_it_was_superseded(log: History) -> None:
    run = log.run_no("survivor")
    half = log.of(run, "message_delta", delta="half ")[0]
    goes_on = log.insert(copy(half, attempt=2), after=log.of(run, "agent_started")[1])
    goes_on.data["offset"] = 5
    found(log, "message", f"message_delta of {half.data['message_id']}, expected that message to be open here")


def test_an_attempt_beyond_those_that_may_be_lost(log: History) -> None:
    log.of(log.run_no("survivor"), "run_queued")[0].data["max_attempts"] = 1
    found(log, "attempt", "attempt 2 starts after 1 lost ones, expected at most 1, which is max_attempts")


def test_a_run_that_runs_out_of_attempts_too_early(log: History) -> None:
    log.of(log.run_no("dies_once"), "run_queued")[0].data["max_attempts"] = 3
    found(log, "attempt", "it fails after 1 lost attempts, expected 3 first")


def test_a_released_attempt_that_is_counted_as_lost(log: History) -> None:
    """The row is what the fold makes of it; the log itself says that the run had an attempt too many."""
    run = log.run_no("survivor")
    log.of(run, "run_queued")[0].data["max_attempts"] = 2
    superseded(log, run).data["reason"] = "lost"
    found(log, "attempt", "attempt 3 starts after 2 lost ones, expected at most 2")


def test_an_attempt_after_a_crash_of_a_run_that_was_to_fail(log: History) -> None:
    log.of(log.run_no("survivor"), "run_queued")[0].data["on_crash"] = "fail"
    found(log, "attempt", "attempt 2 starts after a lost one, expected the end: on_crash is 'fail'")


def test_an_attempt_after_a_cancel(log: History) -> None:
    run = log.run_no("holds")
    asked = log.of(run, "cancel_requested")[0]
    log.move(asked, before=log.of(run, "agent_started")[0])
    found(log, "attempt", "attempt 1 starts after a cancel was asked for, expected agent_cancelled")


def test_a_cancel_that_is_asked_for_twice(log: History) -> None:
    log.repeat(log.of(log.run_no("holds"), "cancel_requested")[0])
    found(log, "run", "cancel_requested a second time, expected once")


# --- families --------------------------------------------------------------------------------------------


def restart(log: History, run_no: int, attempt: int) -> list[Event]:
    """The two events with which an attempt takes the place of another."""
    begun = next(event for event in log.of(run_no, "agent_started") if event.attempt == attempt)
    return [log.events[log.at(begun) - 1], begun]


def test_words_of_a_child_of_an_older_attempt_of_its_root(log: History) -> None:
    child = log.run_no("helper")
    said = copy(log.of(log.run_no("survivor"), "usage")[0], run_no=child, attempt=1)
    log.insert(said, after=log.of(log.run_no("survivor"), "agent_started")[1])
    found(
        log,
        "attempt",
        log.run_id(child),
        "usage of attempt 1, expected attempt 2 first: its root is in a later attempt than this one's",
    )


def test_a_child_that_goes_on_before_its_caller(log: History) -> None:
    caller, child = log.run_no("helper", 0), log.run_no("helper", 1)
    log.move(*restart(log, child, 2), before=restart(log, caller, 2)[0])
    found(
        log,
        "attempt",
        log.run_id(child),
        f"attempt 2 starts, expected its caller {log.run_id(caller)} to be under way",
    )


def test_two_attempts_of_a_child_in_one_of_its_root(log: History) -> None:
    child = log.run_no("helper", 1)
    end, begun = restart(log, child, 3)
    for event in log.events:
        if event.run_no == child and event.attempt == 3:
            event.attempt = 4
    begun.attempt = 3
    again = log.insert(copy(end), after=begun)
    again.data |= {"attempt": 3, "messages": []}
    log.insert(copy(begun, attempt=4), after=again)
    found(log, "attempt", log.run_id(child), "attempt 4 starts, expected a later attempt of its root than 3 for it")


def test_a_parent_that_ends_before_its_child(log: History) -> None:
    root, child = log.run_no("survivor"), log.run_no("waits", 1)
    assert log.of(child, "run_queued")[0].thread_no == log.of(root, "run_queued")[0].thread_no
    log.move(*log.of(child, "agent_completed"), before=log.of(root, "agent_completed")[0])
    log.move(*log.of(root, "agent_completed"), before=log.of(child, "agent_completed")[0])
    found(
        log,
        "run",
        log.run_id(root),
        f"agent_completed while children are unfinished ({log.run_id(child)}), expected their ends before",
    )


def test_a_child_that_is_called_by_a_run_that_has_ended(log: History) -> None:
    child = log.run_no("helper")
    ended = log.run_id(log.run_no("busy"))
    log.of(child, "run_queued")[0].data["parent_run_id"] = ended
    lines = [finding.line() for finding in log.broken()]
    assert any(f"it is called by {ended}, expected that run to be under way" in line for line in lines)


@pytest.mark.parametrize("agent", ["helper", "survivor"])
def test_a_run_with_another_root(log: History, agent: str) -> None:
    run = log.run_no(agent, -1)
    other = log.run_id(log.run_no("busy"))
    log.of(run, "run_queued")[0].data["root_run_id"] = other
    lines = [finding.line() for finding in log.broken()]
    assert any(log.run_id(run) in line and f"its root_run_id is {other}, expected run_" in line for line in lines)


def test_a_run_that_starts_while_an_earlier_one_of_its_thread_is_unfinished(log: History) -> None:
    first = log.run_no("holds")
    thread_no = log.of(first, "run_queued")[0].thread_no
    begun = next(event for event in log.events[::-1] if event.thread_no == thread_no and event.type == "agent_started")
    log.move(begun, before=log.of(first, "agent_cancelled")[0])
    found(log, "run", f"it starts while {log.run_id(first)} is unfinished, expected the earlier run to end before")


def test_a_thread_that_ends_before_its_run(log: History) -> None:
    deleted = next(event for event in log.events if event.type == "thread_deleted")
    end = next(
        event for event in log.events if event.thread_no == deleted.thread_no and event.type == "agent_cancelled"
    )
    log.drop(end)
    assert end.run_no is not None
    found(log, "thread", f"thread_deleted while {log.run_id(end.run_no)} is unfinished, expected its end before")


@pytest.mark.parametrize("agent", ["survivor", "helper", "dies"])
def test_a_second_terminal_event_of_a_run_of_several_attempts(log: History, agent: str) -> None:
    run = log.run_no(agent)
    log.repeat(next(event for event in log.events[::-1] if event.run_no == run))
    found(log, "run", log.run_id(run), "after the end of its run, expected nothing more of it")


# --- actions ---------------------------------------------------------------------------------------------


def test_an_action_that_ends_twice(log: History) -> None:
    done = log.repeat(log.of(log.run_no("survivor"), "tool_completed", status="success")[0])
    found(log, "action", f"tool_completed of {done.data['action_id']}, expected that action to be pending here")


def test_an_action_that_begins_twice(log: History) -> None:
    begun = log.repeat(log.of(log.run_no("survivor"), "tool_executing", tool="look_up")[0])
    found(log, "action", f"the action {begun.data['action_id']} begins a second time")


def test_a_message_that_begins_twice(log: History) -> None:
    begun = log.repeat(log.of(log.run_no("survivor"), "message_started")[0])
    found(log, "message", f"the message {begun.data['message_id']} begins a second time")


@pytest.mark.parametrize("kind", ["tool_output", "agent_retrying"])
def test_signs_of_an_action_that_is_not_under_way(log: History, kind: str) -> None:
    sign = next(event for event in log.events if event.type == kind)
    sign.data["action_id"] = "act_x"
    said = "output" if kind == "tool_output" else kind
    found(log, "action", f"{said} of act_x, expected that action to be pending here")


def test_a_repetition_of_what_was_not_interrupted(log: History) -> None:
    run = log.run_no("survivor")
    first, second, third = log.of(run, "tool_executing", tool="again")
    other = log.of(run, "tool_executing", tool="once")[0].data["action_id"]
    done = log.of(run, "tool_executing", tool="look_up")[0].data["action_id"]
    expected = "expected an interrupted action of again in this run that was not made again yet"
    for wrong in (first.data["action_id"], other, done, "act_x"):
        third.data["retry_of"] = wrong
        found(log, "action", f"{third.data['action_id']} is made in place of {wrong}, {expected}")
    third.data["retry_of"] = second.data["action_id"]
    assert log.broken() == []


# --- steps -----------------------------------------------------------------------------------------------


def test_a_step_that_is_recorded_twice(log: History) -> None:
    log.repeat(log.of(log.run_no("survivor"), "step_completed", key="first")[0])
    found(log, "step", "the step 'first' is recorded a second time, expected once in a run")


def test_what_was_not_done_inside_a_step(log: History) -> None:
    step = log.of(log.run_no("survivor"), "step_completed", key="first")[0]
    others = log.of(log.run_no("busy"), "message_started")[0].data["message_id"]
    for wrong in ("msg_x", "act_x", others):
        step.data["inner"].append(wrong)
        found(log, "step", f"the step 'first' names {wrong} as done inside, expected what this run has said or done")
        step.data["inner"].pop()


def test_what_was_not_done_inside_an_action(log: History) -> None:
    done = log.of(log.run_no("survivor"), "tool_completed", status="success")[0]
    done.data["inner"] = ["act_x"]
    found(log, "step", f"the action {done.data['action_id']} names act_x as done inside")


def test_a_step_around_what_was_superseded(log: History) -> None:
    run = log.run_no("survivor")
    said = log.of(run, "attempt_superseded")[0].data["messages"][0]
    step = copy(log.of(run, "step_completed")[0], attempt=3)
    step.data = {"key": "late", "output": None, "inner": [said]}
    log.insert(step, after=log.of(run, "agent_started")[2])
    found(log, "step", f"the step 'late' names {said}, which was superseded, expected what stands")


# --- approvals -------------------------------------------------------------------------------------------


def test_an_approval_that_is_resolved_twice(log: History) -> None:
    again = log.repeat(log.of(log.run_no("asks"), "approval_resolved")[0])
    expected = "expected that approval of the run to be open here"
    found(log, "approval", f"approval_resolved of {again.data['approval_id']}, {expected}")


def test_an_approval_that_is_requested_twice(log: History) -> None:
    again = log.repeat(log.of(log.run_no("asks"), "approval_requested")[0])
    found(log, "approval", f"the approval {again.data['approval_id']} begins a second time")


def test_an_approval_of_another_run(log: History) -> None:
    asked = log.of(log.run_no("waits", -1), "approval_requested")[0]  # still open
    wrong = log.repeat(log.of(log.run_no("asks"), "approval_resolved")[0])
    wrong.data["approval_id"] = asked.data["approval_id"]
    found(log, "approval", "approval_resolved of", "expected that approval of the run to be open here")


def test_an_approval_that_is_open_when_its_run_ends(log: History) -> None:
    run = log.run_no("asks")
    last = log.of(run, "approval_resolved")[-1]
    log.drop(last)
    found(log, "run", f"while the approval {last.data['approval_id']} is open, expected it to be closed before")


def test_a_digest_that_is_not_that_of_the_input(log: History) -> None:
    log.of(log.run_no("asks"), "approval_requested")[0].data["input_hash"] = "0" * 64
    found(log, "approval", "the input_hash of apr_", "is 000000", "expected its input's")


def guarded(log: History, decision: str) -> tuple[Event, Event]:
    """The approval of a tool's call, and its decision."""
    run = log.run_no("asks")
    for asked in log.of(run, "approval_requested", prompt="Run guarded?"):
        (decided,) = log.of(run, "approval_resolved", approval_id=asked.data["approval_id"])
        if decided.data["decision"] == decision:
            return asked, decided
    raise AssertionError(decision)


def test_an_action_that_begins_before_it_is_approved(log: History) -> None:
    asked, decided = guarded(log, "approved")
    (begun,) = log.of(log.run_no("asks"), "tool_executing", action_id=asked.data["action_id"])
    log.move(begun, before=decided)
    found(log, "approval", f"the action {asked.data['action_id']} begins, expected it to be approved before")


def test_an_action_that_was_denied(log: History) -> None:
    asked, decided = guarded(log, "denied")
    run = log.run_no("asks")
    approved, _ = guarded(log, "approved")
    (begun,) = log.of(run, "tool_executing", action_id=approved.data["action_id"])
    (ended,) = log.of(run, "tool_completed", action_id=approved.data["action_id"])
    for event in (ended, begun):
        log.insert(copy(event), after=decided).data["action_id"] = asked.data["action_id"]
    found(log, "approval", f"the action {asked.data['action_id']} begins, expected it to be approved before")


def test_one_approval_for_two_calls(log: History) -> None:
    asked, _ = guarded(log, "approved")
    run = log.run_no("asks")
    (begun,) = log.of(run, "tool_executing", action_id=asked.data["action_id"])
    (ended,) = log.of(run, "tool_completed", action_id=asked.data["action_id"])
    log.insert(copy(begun), after=log.insert(copy(ended), after=ended))
    log.move(log.events[log.at(ended) + 2], before=log.events[log.at(ended) + 1])
    found(log, "action", f"the action {asked.data['action_id']} begins a second time")


def test_another_call_than_the_one_that_was_approved(log: History) -> None:
    asked, _ = guarded(log, "approved")
    (begun,) = log.of(log.run_no("asks"), "tool_executing", action_id=asked.data["action_id"])
    begun.data["input"] = {"command": "rm -rf /"}
    found(
        log, "approval", f"the action {asked.data['action_id']} has another input, expected the one that was approved"
    )


def test_a_repetition_of_an_approved_call_with_another_input(log: History) -> None:
    run = log.run_no("survivor")
    first, _, third = log.of(run, "tool_executing", tool="again")
    asked, decided = (copy(event) for event in guarded(log, "approved"))
    asked.data |= {"approval_id": "apr_x", "action_id": first.data["action_id"], "input": first.data["input"]}
    asked.data["input_hash"] = values.digest(values.encode(first.data["input"]))
    decided.data |= {"approval_id": "apr_x"}
    for event in (asked, decided):
        event.thread_no, event.run_no, event.attempt = first.thread_no, run, first.attempt
        log.insert(event, after=first)
        log.move(event, before=first)
    assert log.broken() == []
    third.data["input"] = {"value": 2}
    found(
        log, "approval", f"the action {third.data['action_id']} has another input, expected the one that was approved"
    )


# --- where a run stands ------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["supervisor", "waits"])
def test_a_run_that_waits_and_is_said_to_run(store: Store, agent: str) -> None:
    """The supervisor itself asks nobody: it waits because the run that it called does."""
    (run,) = store.sql("SELECT run_id FROM runs WHERE agent = ? AND status = 'waiting'", agent)[0]
    store.change("UPDATE runs SET status = 'running' WHERE run_id = ?", run)
    (line,) = store.lines()
    assert f"runs {run}: status is 'running', expected 'waiting'" in line


def test_a_run_that_runs_and_is_said_to_wait(store: Store) -> None:
    (run,) = store.sql("SELECT run_id FROM runs WHERE agent = 'holds' AND status = 'running'")[0]
    store.change("UPDATE runs SET status = 'waiting' WHERE run_id = ?", run)
    (line,) = store.lines()
    assert f"runs {run}: status is 'waiting', expected 'running'" in line


def test_before_the_answer_the_child_waits_and_its_root_runs_because_of_others(log: History, store: Store) -> None:
    """The statuses at the head are those of the whole family at that moment."""
    child = log.run_no("waits", 1)
    (answer,) = log.of(child, "approval_resolved")
    (called,) = log.of(child, "run_queued")
    log.events = log.events[: log.at(answer)]
    log.broken()
    expected = {
        finding.detail.split()[1].rstrip(":"): finding.detail.partition("status is ")[2].partition(";")[0]
        for finding in store.findings()
        if finding.detail.startswith("runs ")
    }
    assert expected[log.run_id(child)] == "'completed', expected 'waiting'"
    assert expected[str(called.data["parent_run_id"])] == "'completed', expected 'running'"
