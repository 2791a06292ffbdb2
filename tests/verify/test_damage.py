"""Whatever is damaged in a healthy store is found, and the finding says where and what was expected."""

from __future__ import annotations

import pytest

from runstone import events as e
from runstone.projection import KEYS
from tests.verify.conftest import Store


def has(lines: list[str], *parts: object) -> bool:
    """Whether one finding says all of it."""
    return any(all(str(part) in line for part in parts) for line in lines)


# --- the order of events ---------------------------------------------------------------------------------


def test_a_deleted_event_is_a_gap_in_seq_and_in_pos(store: Store) -> None:
    thread, seq, pos, run = store.event("custom")
    store.change("DELETE FROM events WHERE pos = ?", pos)
    lines = store.lines()
    assert has(lines, "seq: ", thread, f"seq {seq + 1}", run, f"expected seq {seq} here")
    assert has(lines, "pos: ", thread, f"pos {pos + 1}", f"{pos} is missing")
    assert len(lines) == 2, lines


def test_several_missing_positions_are_one_finding(store: Store) -> None:
    _, _, pos, _ = store.event("custom")
    store.sql("UPDATE events SET pos = pos + 1000000 WHERE pos >= ?", pos)
    assert has(store.lines(), f"{pos} to {pos + 999_999} are missing")


def test_a_store_whose_first_event_is_gone_is_found(store: Store) -> None:
    store.change("DELETE FROM events WHERE pos = 1")
    lines = store.lines()
    assert has(lines, "pos 2", "1 is missing")
    assert has(lines, "seq 2", "expected seq 1 here")
    assert has(lines, "rows: ", "threads thr_", "expected an earlier event that made it")


def test_a_thread_whose_last_event_is_gone_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event(
        "agent_completed", "AND seq = (SELECT max(seq) FROM events e WHERE e.thread_no = events.thread_no)"
    )
    store.change("DELETE FROM events WHERE pos = ?", pos)
    lines = store.lines()
    assert has(
        lines,
        "rows: ",
        thread,
        f"runs {run}",
        "status is 'completed', expected 'running'",
        f"last_seq is {seq}, expected None",
    )
    assert has(lines, "rows: ", f"threads {thread}", "updated_at is")


def test_swapped_times_are_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("tool_executing")
    store.change("UPDATE events SET time = (SELECT time FROM events WHERE pos = 1) - 1 WHERE pos = ?", pos)
    assert has(store.lines(), "time: ", thread, f"seq {seq}", f"pos {pos}", "expected", f"as at pos {pos - 1}")


def test_events_in_another_order_than_they_were_committed_are_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("custom")
    for old, new in ((pos, -1), (pos + 1, pos), (-1, pos + 1)):
        store.change("UPDATE events SET pos = ? WHERE pos = ?", new, old)
    assert has(store.lines(), "seq: ", thread, f"seq {seq + 1}", f"seq {seq} stands at pos {pos + 1}")


def test_an_event_of_another_user_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("custom")
    store.change("UPDATE events SET user_id = 'mallory' WHERE pos = ?", pos)
    assert store.lines() == [
        f"owner: {thread} seq {seq} pos {pos} {run}: its user_id is 'mallory', expected the owner, 'local'"
    ]


def test_a_thread_given_to_another_user_is_found(store: Store) -> None:
    thread, *_ = store.event("custom")
    store.change("UPDATE threads SET user_id = 'mallory' WHERE thread_id = ?", thread)
    assert has(store.lines(), "owner: ", thread, "seq 1", "its user_id is 'local', expected the owner, 'mallory'")


def test_events_of_no_thread_are_found(store: Store) -> None:
    _, _, pos, _ = store.event("thread_created")
    for thread_no in (4000, 5000):
        copy_event(store, pos)
        store.change(
            "UPDATE events SET thread_no = ? WHERE pos = (SELECT max(pos) FROM events)",
            thread_no,
        )
    lines = store.lines()
    for thread_no in (4000, 5000):
        assert has(lines, "store: stretches of events", f"events of thread_no {thread_no}", "no read finds them")
    store.sql("INSERT INTO stretches SELECT thread_no, seq, 0 FROM events WHERE thread_no >= 4000")
    lines = store.lines()
    for thread_no in (4000, 5000):
        assert has(lines, f"there are events of thread_no {thread_no}, expected a row of threads")


def test_events_that_no_read_finds_and_stretches_without_events_are_found(store: Store) -> None:
    assert not store.lines()
    thread_no, first_seq = store.sql("SELECT thread_no, first_seq FROM stretches LIMIT 1")[0]
    store.sql("UPDATE stretches SET stretch = 7 WHERE thread_no = ? AND first_seq = ?", thread_no, first_seq)
    lines = store.lines()
    assert has(lines, f"events of thread_no {thread_no} from seq {first_seq} on stand in stretch 0")
    assert has(lines, f"stretches says that thread_no {thread_no} has seq {first_seq} in stretch 7")


# --- what may happen to a run ----------------------------------------------------------------------------


def copy_event(store: Store, pos: int) -> None:
    """The event once more, at the end of its thread and of the store."""
    store.change(
        "INSERT INTO events SELECT (SELECT max(pos) FROM events) + 1, thread_no, "
        "(SELECT max(seq) FROM events AS e WHERE e.thread_no = events.thread_no) + 1, run_no, attempt, user_id, type, "
        "(SELECT max(time) FROM events), private, v, codec, key_id, payload FROM events WHERE pos = ?",
        pos,
    )


@pytest.mark.parametrize("kind", ["agent_completed", "agent_failed", "agent_cancelled"])
def test_a_second_terminal_event_is_found(store: Store, kind: str) -> None:
    thread, _, pos, run = store.event(kind)
    copy_event(store, pos)
    lines = store.lines()
    assert len(lines) == 1, lines
    assert has(lines, "run: ", thread, run, f"{kind} after the end of its run, expected nothing more of it")


@pytest.mark.parametrize("kind", ["message_delta", "custom", "tool_executing", "user_message"])
def test_an_event_of_an_ended_run_is_found(store: Store, kind: str) -> None:
    thread, _, pos, run = store.event(kind, "AND run_no IN (SELECT run_no FROM runs WHERE status = 'completed')")
    copy_event(store, pos)
    assert has(store.lines(), "run: ", thread, run, f"{kind} after the end of its run")


def test_a_missing_terminal_event_is_found_by_the_row_that_says_the_run_has_ended(store: Store) -> None:
    thread, _, pos, run = store.event("agent_failed")
    store.sql("UPDATE events SET type = 'custom', payload = ? WHERE pos = ?", b'{"data":{"name":"x","value":1}}', pos)
    assert has(store.lines(), "rows: ", thread, f"runs {run}", "status is 'failed', expected 'running'")


def test_a_run_that_starts_before_it_was_queued_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("run_queued")
    store.sql("UPDATE events SET type = 'custom', payload = ? WHERE pos = ?", b'{"data":{"name":"x","value":1}}', pos)
    lines = store.lines()
    assert has(lines, "run: ", thread, f"seq {seq}", run, "custom before the run is queued, expected run_queued")
    assert has(lines, "run: ", run, "agent_started while the run is not queued, expected one of: run_queued")


def test_a_run_that_is_queued_twice_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("custom")
    store.change(
        "UPDATE events SET type = 'run_queued', payload = "
        "(SELECT payload FROM events WHERE type = 'run_queued' LIMIT 1) WHERE pos = ?",
        pos,
    )
    assert has(
        store.lines(),
        "run: ",
        thread,
        f"seq {seq}",
        run,
        "run_queued while the run is running, expected one of: agent_started",
    )


def test_an_event_of_a_stale_attempt_is_found(store: Store) -> None:
    for kind in ("message_delta", "custom"):
        thread, seq, pos, run = store.event(kind, "AND events.attempt IS NOT NULL")
        store.change("UPDATE events SET attempt = 7 WHERE pos = ?", pos)
        assert has(store.lines(), "attempt: ", thread, f"seq {seq}", run, f"{kind} of attempt 7, expected attempt 1")


def test_an_attempt_that_was_skipped_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("agent_started")
    store.change("UPDATE events SET attempt = 2 WHERE pos = ?", pos)
    assert has(store.lines(), "attempt: ", thread, f"seq {seq}", run, "attempt 2 starts, expected attempt 1")


def test_a_run_that_completes_although_it_was_cancelled_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event(
        "agent_cancelled", "AND run_no IN (SELECT run_no FROM runs WHERE cancel_deadline NOTNULL)"
    )
    payload = b'{"data":{"output":null,"usage":{}}}'
    store.change("UPDATE events SET type = 'agent_completed', payload = ? WHERE pos = ?", payload, pos)
    assert has(
        store.lines(), "run: ", thread, f"seq {seq}", run, "agent_completed after a cancel", "expected agent_cancelled"
    )


@pytest.mark.parametrize(("kind", "what"), [("message_completed", "message msg_"), ("tool_completed", "action act_")])
def test_what_is_still_open_when_its_run_ends_is_found(store: Store, kind: str, what: str) -> None:
    thread, _, pos, run = store.event(kind, "AND run_no IN (SELECT run_no FROM runs WHERE status = 'cancelled')")
    store.sql("UPDATE events SET type = 'custom', payload = ? WHERE pos = ?", b'{"data":{"name":"x","value":1}}', pos)
    assert has(
        store.lines(),
        "run: ",
        thread,
        run,
        f"agent_cancelled while the {what}",
        "is open, expected it to be closed before",
    )


def test_a_parent_that_ends_before_its_child_is_found(store: Store) -> None:
    # the run behind a cancelled one becomes its child
    thread, _, pos, run = store.event(
        "run_queued",
        "AND runs.status = 'completed' AND runs.thread_id IN (SELECT thread_id FROM runs WHERE status = 'cancelled')",
    )
    first, _, _, parent = store.event("run_queued", "AND runs.status = 'cancelled' AND runs.attempt = 1")
    assert thread == first
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    payload = payload.replace(
        b'"projection_version"', b'"parent_run_id":"%b","projection_version"' % str(parent).encode()
    )
    store.change("UPDATE events SET payload = ? WHERE pos = ?", payload, pos)
    assert has(store.lines(), "run: ", parent, "agent_cancelled while children are unfinished", run)


def test_an_event_after_the_end_of_its_thread_is_found(store: Store) -> None:
    thread, _, _, _ = store.event("thread_deleted")
    _, _, pos, _ = store.event("thread_updated", "AND run_no IS NULL")
    copy_event(store, pos)
    store.change(
        "UPDATE events SET thread_no = (SELECT thread_no FROM threads WHERE thread_id = ?1), "
        "seq = (SELECT max(seq) + 1 FROM events JOIN threads USING (thread_no) WHERE thread_id = ?1) "
        "WHERE pos = (SELECT max(pos) FROM events)",
        thread,
    )
    assert has(store.lines(), "thread: ", thread, "thread_updated after thread_deleted, expected nothing")


# --- payloads ------------------------------------------------------------------------------------------------


def test_a_changed_byte_of_text_is_found(store: Store) -> None:
    thread, _, pos, _ = store.event("message_delta")
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    at = payload.index(b'"delta":"') + 9
    changed = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
    store.change("UPDATE events SET payload = ? WHERE pos = ?", changed, pos)
    lines = store.lines()
    assert len(lines) == 1, lines
    assert has(lines, "rows: ", thread, "messages msg_", "parts is", "expected")


@pytest.mark.parametrize("kind", ["message_delta", "agent_thinking", "custom", "run_queued"])
@pytest.mark.parametrize("damage", ["space", "escape"])
def test_bytes_that_are_not_canonical_are_found_even_if_they_mean_the_same(
    store: Store, kind: str, damage: str
) -> None:
    thread, seq, pos, run = store.event(kind)
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    changed = (
        payload.replace(b'{"data":', b'{"data": ') if damage == "space" else payload.replace(b'"data"', b'"d\\u0061ta"')
    )
    store.change("UPDATE events SET payload = ? WHERE pos = ?", changed, pos)
    lines = store.lines()
    assert len(lines) == 1, lines
    assert has(lines, "payload: ", thread, f"seq {seq}", run or "", "expected the canonical bytes")


@pytest.mark.parametrize("kind", ["message_delta", "agent_completed", "thread_created"])
@pytest.mark.parametrize("payload", [b'{"data":{}}', b"{", b"", b"\xff\xfe", b"[1]", b'{"data":{"delta":1}}'])
def test_a_payload_that_is_not_that_of_its_type_is_found(store: Store, kind: str, payload: bytes) -> None:
    thread, seq, pos, _ = store.event(kind)
    store.change("UPDATE events SET payload = ? WHERE pos = ?", payload, pos)
    assert has(store.lines(), "payload: ", thread, f"seq {seq}", f"it is no {kind}")


def test_an_integer_of_more_than_64_bits_is_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("custom")
    store.change("UPDATE events SET payload = ? WHERE pos = ?", b'{"data":{"name":"x","value":%d}}' % 2**70, pos)
    assert has(store.lines(), "payload: ", thread, f"seq {seq}")


def test_parts_that_no_rule_can_fold_are_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("user_message")
    payload = b'{"data":{"by":"local","message_id":"msg_1","parts":[{"type":"text"}]}}'
    store.change("UPDATE events SET payload = ? WHERE pos = ?", payload, pos)
    assert has(store.lines(), "payload: ", thread, f"seq {seq}", "user_message cannot be folded: KeyError: 'text'")


def test_an_unknown_type_is_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("custom")
    store.change("UPDATE events SET type = 'gossip' WHERE pos = ?", pos)
    assert has(store.lines(), "payload: ", thread, f"seq {seq}", "there is no event type 'gossip'")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("v = 2", "its schema version is 2, expected 1"),
        ("codec = 'zstd'", "it is encoded, expected plain JSON"),
        ("key_id = 'k'", "it is encoded, expected plain JSON"),
        ("payload = CAST(payload AS TEXT)", "its payload is stored as text, expected as bytes"),
        ("time = 'noon'", "its seq or its time is no integer"),
    ],
)
def test_columns_that_readers_do_not_know_are_found(store: Store, columns: str, said: str) -> None:
    thread, seq, pos, _ = store.event("custom")
    store.change(f"UPDATE events SET {columns} WHERE pos = ?", pos)
    assert has(store.lines(), "payload: ", thread, f"seq {seq}", said)


# --- messages and actions --------------------------------------------------------------------------------------


def data(store: Store, pos: int, old: str, new: str) -> None:
    """Writes other data into an event, in canonical bytes."""
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    assert old.encode() in payload
    store.change("UPDATE events SET payload = ? WHERE pos = ?", payload.replace(old.encode(), new.encode()), pos)


def test_a_gap_in_the_offsets_of_a_message_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("message_delta", """AND CAST(payload AS TEXT) LIKE '%"offset":4,%'""")
    data(store, pos, '"offset":4', '"offset":5')
    lines = store.lines()
    assert has(lines, "message: ", thread, f"seq {seq}", run, "offset 5 in part 0", "expected 4")
    assert not has(lines, "rows: ")


def test_a_delta_of_the_wrong_part_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("message_delta", """AND CAST(payload AS TEXT) LIKE '%"part":3%'""")
    data(store, pos, '"part":3', '"part":5')
    assert has(
        store.lines(), "message: ", thread, f"seq {seq}", run, "a delta of part 5", "expected one of part 2 or the next"
    )


def test_a_part_that_begins_in_the_middle_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("message_delta", """AND CAST(payload AS TEXT) LIKE '%"part":3%'""")
    data(store, pos, '"offset":0', '"offset":9')
    assert has(store.lines(), "message: ", thread, f"seq {seq}", run, "part 3 of", "begins at offset 9, expected 0")


def test_a_whole_part_with_the_wrong_number_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("message_part")
    data(store, pos, '"part":2', '"part":4')
    assert has(store.lines(), "message: ", thread, f"seq {seq}", run, "part 4 of", "begins, expected part 2")


def test_a_wrong_length_is_found(store: Store) -> None:
    thread, seq, pos, run = store.event("message_completed", "AND events.attempt = 1")
    data(store, pos, '"length":', '"length":7')
    assert has(store.lines(), "message: ", thread, f"seq {seq}", run, "is said to be 7", "expected")


@pytest.mark.parametrize("kind", ["message_delta", "message_part", "message_completed"])
def test_an_event_of_a_message_that_is_not_open_is_found(store: Store, kind: str) -> None:
    thread, seq, pos, _ = store.event(kind)
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    start = payload.index(b"msg_")
    changed = payload[:start] + b"msg_X" + payload[start + 5 :]
    store.change("UPDATE events SET payload = ? WHERE pos = ?", changed, pos)
    assert has(
        store.lines(), "message: ", thread, f"seq {seq}", f"{kind} of msg_X", "expected that message to be open here"
    )


def test_an_action_that_ends_without_having_begun_is_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("tool_completed")
    payload = store.sql("SELECT payload FROM events WHERE pos = ?", pos)[0][0]
    start = payload.index(b"act_")
    store.change("UPDATE events SET payload = ? WHERE pos = ?", payload[:start] + b"act_X" + payload[start + 5 :], pos)
    assert has(
        store.lines(),
        "action: ",
        thread,
        f"seq {seq}",
        "tool_completed of act_X",
        "expected that action to be pending here",
    )


def test_output_of_an_action_that_is_not_pending_is_found(store: Store) -> None:
    thread, seq, pos, _ = store.event("custom")
    payload = b'{"data":{"action_id":"act_x","delta":"line"}}'
    store.change("UPDATE events SET type = 'tool_output', payload = ? WHERE pos = ?", payload, pos)
    assert has(
        store.lines(), "action: ", thread, f"seq {seq}", "output of act_x, expected that action to be pending here"
    )


# --- rows ----------------------------------------------------------------------------------------------------

CHANGES = {
    "threads": [
        "key = 'other'",
        "title = 'other'",
        "metadata = x'7b7d20'",
        "created_at = 1",
        "updated_at = 1",
        "activity_pos = 1",
        "deleted_at = 1",
    ],
    "runs": [
        "key = 'other'",
        "agent = 'other'",
        "status = 'failed'",
        "attempt = 9",
        "input = x'30'",
        "output = x'30'",
        "error = x'30'",
        "input_tokens = 99",
        "output_tokens = 99",
        "cached_input_tokens = 99",
        "reasoning_tokens = 99",
        "cost = 99",
        "metadata = x'30'",
        "message_id = 'other'",
        "parent_run_id = run_id",
        "root_run_id = 'other'",
        "on_busy = 'reject'",
        "on_crash = 'fail'",
        "max_attempts = 99",
        "timeout_s = 99",
        "projection_version = 99",
        "lost = 99",
        "cancel_by = 'other'",
        "cancel_reason = 'other'",
        "cancel_deadline = 'other'",
        "created_at = 1",
        "started_at = 1",
        "ended_at = 1",
        "updated_at = 1",
        "first_seq = 99",
        "last_seq = 99",
        "user_id = 'mallory'",
    ],
    "messages": [
        "role = 'user'",
        "status = 'partial'",
        "reason = 'error'",
        "parts = x'5b5d'",
        "length = 99",
        "finish_reason = 'other'",
        "metadata = x'30'",
        "last_seq = 99",
        "created_at = 1",
        "run_id = NULL",
        "user_id = 'mallory'",
    ],
    "actions": [
        "tool = 'other'",
        "executor = 'client'",
        "input = x'30'",
        "status = 'error'",
        "output = x'30'",
        "error = x'30'",
        "private = 1",
        "key = 'other'",
        "retry_of = 'other'",
        "inner = x'5b5d'",
        "beside = 99",
        "started_at = 1",
        "ended_at = 1",
        "user_id = 'mallory'",
    ],
    "approvals": [
        "action_id = 'other'",
        "key = 'other'",
        "kind = 'other'",
        "prompt = 'other'",
        "input = x'30'",
        "input_hash = 'other'",
        "schema = x'30'",
        "status = 'denied'",
        "value = x'30'",
        "by = 'mallory'",
        "comment = 'other'",
        "created_at = 1",
        "expires_at = 1",
        "resolved_at = 1",
        "seq = 99",
        "run_id = (SELECT run_id FROM runs WHERE agent = 'busy')",
        "user_id = 'mallory'",
    ],
    "steps": ["output = x'30'", "inner = x'5b5d'", "seq = 99", "user_id = 'mallory'"],
    "state": ["value = x'30'", "public = 0", "seq = 99", "user_id = 'mallory'"],
}
SAID = "status = 'completed' AND run_id = (SELECT run_id FROM runs WHERE status = 'running')"
# rows that are in the middle of the healthy store, and others that are unfinished at its end
WHICH = {
    "threads": ["key = 'thread-1'"],
    "runs": ["agent = 'busy'", "status = 'running'", "status = 'queued'"],
    "messages": ["role = 'assistant' AND metadata = CAST('{\"tone\":\"calm\"}' AS BLOB)", "status = 'streaming'", SAID],
    "actions": ["tool = 'flaky'", "status = 'pending'"],
    "approvals": ["prompt = 'Approve this.'", "status = 'open'"],
    "steps": ["key = 'first'"],
    "state": ["key = 'plan'"],
}
EDITS = [(table, where, change) for table, changes in CHANGES.items() for where in WHICH[table] for change in changes]


@pytest.mark.parametrize(("table", "where", "change"), EDITS)
def test_an_edited_row_is_found(store: Store, table: str, where: str, change: str) -> None:
    key = KEYS[table][-1]  # type: ignore[index]
    found = store.sql(f"SELECT {key} FROM {table} WHERE {where}")
    assert len(found) == 1
    store.change(f"UPDATE {table} SET {change} WHERE {where}")
    assert has(store.lines(), "rows: ", f"{table} {found[0][0]}: ", f"{change.split(' ')[0]} is ", ", expected ")


def test_every_column_that_is_derived_has_an_edit_above(store: Store) -> None:
    surrogates = {"thread_no", "run_no", "thread_id", "run_id", "message_id", "action_id", "shard", "owner"}
    surrogates |= {"approval_id"}
    places = {
        "messages.first_seq",
        "actions.seq",
        "state.key",
        "steps.key",
        "threads.user_id",
    }  # moved by tests of their own
    for table, changes in CHANGES.items():
        columns = {row[1] for row in store.sql(f"PRAGMA table_info({table})")} - surrogates
        assert {f"{table}.{column}" for column in columns - {c.split(" ")[0] for c in changes}} <= places


@pytest.mark.parametrize("table", ["threads", "runs", "messages", "actions", "approvals", "steps", "state"])
def test_a_deleted_row_is_found(store: Store, table: str) -> None:
    where = WHICH[table][0]
    key = KEYS[table][-1]  # type: ignore[index]
    id = store.sql(f"SELECT {key} FROM {table} WHERE {where}")[0][0]
    number = store.sql("SELECT thread_no FROM threads WHERE key = 'thread-1'")[0][0]
    store.change(f"DELETE FROM {table} WHERE {where}")
    lines = store.lines()
    if table == "threads":
        assert has(lines, f"there are events of thread_no {number}, expected a row of threads")
        assert has(lines, "store: foreign keys of runs", "thread_id", id, "is in no row of threads")
    elif table == "runs":
        assert has(lines, "rows: ", "its run_no is", "expected a row of runs with that number")
        assert has(lines, "store: foreign keys of messages", "run_id", id, "is in no row of runs")
    else:
        assert has(lines, "rows: ", f"{table} {id}: there is no such row, expected the one that the events make")


@pytest.mark.parametrize("table", ["runs", "messages", "actions", "approvals", "steps", "state", "threads"])
def test_a_row_that_no_event_has_made_is_found(store: Store, table: str) -> None:
    names = [row[1] for row in store.sql(f"PRAGMA table_info({table})") if row[1] not in {"run_no", "thread_no"}]
    key = KEYS[table][-1]  # type: ignore[index]
    columns = ", ".join(
        "'orphan'" if name == key else "NULL" if name == "key" and table != "state" else name for name in names
    )
    store.change(f"INSERT INTO {table} ({', '.join(names)}) SELECT {columns} FROM {table} WHERE {WHICH[table][0]}")
    lines = store.lines()
    assert has(lines, "rows: ", f"{table} orphan: the row is there, expected none: no event makes it")
    assert len(lines) == 1, lines


@pytest.mark.parametrize(
    ("table", "seq"), [("messages", "first_seq"), ("actions", "seq"), ("approvals", "seq"), ("steps", "seq")]
)
def test_a_row_with_another_id_is_missing_and_orphaned(store: Store, table: str, seq: str) -> None:
    id = KEYS[table][-1]  # type: ignore[index]
    old = store.sql(f"SELECT {id}, {seq}, thread_id FROM {table} WHERE {WHICH[table][0]}")[0]
    store.change(f"UPDATE {table} SET {id} = 'renamed' WHERE {id} = ?", old[0])
    lines = store.lines()
    assert has(lines, f"{table} {old[0]}: there is no such row")
    assert has(lines, old[2], f"seq {old[1]}", f"{table} renamed: the row is there, expected none")


@pytest.mark.parametrize("table", ["runs", "messages", "actions", "approvals", "steps"])
def test_a_row_moved_to_another_thread_is_found_there_and_here(store: Store, table: str) -> None:
    id = KEYS[table][-1]  # type: ignore[index]
    moved, thread = store.sql(f"SELECT {id}, thread_id FROM {table} WHERE {WHICH[table][0]}")[0]
    other = store.sql("SELECT thread_id FROM threads WHERE user_id = 'bob'")[0][0]
    store.change(f"UPDATE {table} SET thread_id = ? WHERE {id} = ?", other, moved)
    lines = store.lines()
    assert has(lines, thread, f"{table} {moved}: thread_id is '{other}', expected '{thread}'")
    assert has(lines, other, f"{table} {moved}: the row is there, expected none")


@pytest.mark.parametrize(("table", "seq"), [("messages", "first_seq"), ("actions", "seq")])
def test_a_row_with_the_wrong_place_is_found(store: Store, table: str, seq: str) -> None:
    store.change(f"UPDATE {table} SET {seq} = 3 WHERE {WHICH[table][0]}")
    assert has(store.lines(), "rows: ", f"{seq} is 3, expected ")


def test_a_state_key_that_was_deleted_and_is_there_is_found(store: Store) -> None:
    store.change(
        "INSERT INTO state SELECT thread_id, 'gone', user_id, value, public, seq FROM state WHERE key = 'plan'"
    )
    assert has(store.lines(), "state gone: the row is there, expected none")


# --- the file -----------------------------------------------------------------------------------------------


def test_a_store_without_a_generation_is_found(store: Store) -> None:
    store.change("DELETE FROM meta WHERE name = 'generation'")
    assert store.lines() == ["generation: the store names no generation, expected one"]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DROP INDEX events_in_stretch", "events_in_stretch is missing"),
        ("CREATE TABLE notes (x)", "notes is there, expected nothing of that name"),
        ("ALTER TABLE keys RENAME COLUMN made TO maker", "keys is not as its migration made it"),
    ],
)
def test_a_schema_that_no_migration_makes_is_found(store: Store, sql: str, said: str) -> None:
    store.sql(sql)
    assert has(store.lines(), "store: tables and indexes: ", said)


def test_a_reference_to_nothing_is_found(store: Store) -> None:
    store.sql("UPDATE keys SET thread_id = 'thr_0' WHERE key = 'thread-1'")
    store.change("UPDATE actions SET run_id = 'run_0' WHERE tool = 'flaky'")
    lines = store.lines()
    assert has(lines, "store: foreign keys of keys: ", "thread_id is in no row of threads")
    assert has(lines, "store: foreign keys of actions: ", "act_", "run_id 'run_0' is in no row of runs")


def test_a_page_that_is_not_sqlites_is_found(store: Store) -> None:
    root = store.sql("SELECT rootpage FROM sqlite_schema WHERE name = 'messages'")[0][0]
    page = store.sql("PRAGMA page_size")[0][0]
    with store.path.open("r+b") as file:
        file.seek((root - 1) * page)
        file.write(b"\xff" * 100)
    lines = store.lines()
    assert has(lines, "store: quick_check of messages: ")
    assert has(lines, "store: thr_", "the thread cannot be read: ")


def test_a_lost_page_of_events_is_found(store: Store) -> None:
    leaf = store.sql("SELECT max(pageno) FROM dbstat WHERE name = 'events' AND pagetype = 'leaf'")[0][0]
    page = store.sql("PRAGMA page_size")[0][0]
    with store.path.open("r+b") as file:
        file.seek((leaf - 1) * page)
        file.write(bytes(page))
    lines = store.lines()
    assert has(lines, "store: quick_check of events: ")
    assert has(lines, "store: pos ", "nothing can be read after it: ")


def test_types_that_every_log_should_hold_stand_in_the_healthy_store(store: Store) -> None:
    """The damages above are worth as much as what they start from."""
    later = {"tool_input", "artifact_created"}
    assert set(e.TYPES) - {row[0] for row in store.sql("SELECT DISTINCT type FROM events")} == later
