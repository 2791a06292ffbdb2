"""Where the events of a thread stand in the log.

An index on (thread, seq) has a page of its own for every long thread: a commit with one event of each of 500 threads
writes 500 pages, and that is what it costs. So the log is cut into stretches of 16,384 positions. The index of the
events is ordered by stretch first: what is written now stands in a few dozen pages, whoever wrote it. And a small
table says in which stretches a thread has events: a row per thread and stretch, not per event.
"""

from __future__ import annotations

SHIFT = 14  # 2 to the power of it positions are a stretch; 12 to 16 cost about the same
STRETCH = f"(pos >> {SHIFT})"
STRETCH_OF_EVENT = f"(e.pos >> {SHIFT})"


def stretch_of(pos: int) -> int:
    return pos >> SHIFT


def since(thread_no: str, seq: str) -> str:
    """FROM and WHERE: a thread's events `e` from a seq on; in order by (s.first_seq, e.seq)."""
    return f"""
        FROM stretches AS s CROSS JOIN events AS e INDEXED BY events_in_stretch
        WHERE s.thread_no = {thread_no} AND s.first_seq >= coalesce(
            (SELECT max(first_seq) FROM stretches WHERE thread_no = {thread_no} AND first_seq <= {seq}), 0
        ) AND {STRETCH_OF_EVENT} = +s.stretch AND e.thread_no = s.thread_no AND e.seq >= {seq}
    """


def below(thread_no: str, seq: str) -> str:
    """The same below a seq."""
    return f"""
        FROM stretches AS s CROSS JOIN events AS e INDEXED BY events_in_stretch
        WHERE s.thread_no = {thread_no} AND s.first_seq < {seq}
            AND {STRETCH_OF_EVENT} = +s.stretch AND e.thread_no = s.thread_no AND e.seq < {seq}
    """


def head(thread_no: str) -> str:
    """The newest seq of a thread, or null."""
    return f"""(
        SELECT e.seq FROM events AS e INDEXED BY events_in_stretch
        WHERE {STRETCH_OF_EVENT} = (
            SELECT +stretch FROM stretches WHERE thread_no = {thread_no} ORDER BY first_seq DESC LIMIT 1
        ) AND e.thread_no = {thread_no} ORDER BY e.seq DESC LIMIT 1
    )"""
