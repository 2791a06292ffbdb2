"""The newest committed events of the threads written last, kept in memory for readers who are nearly there."""

from __future__ import annotations

from collections import OrderedDict

from runstone.events import Event
from runstone.limits import PAGE_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_EVENTS_MAX, WINDOWS_BYTES_MAX
from runstone.views import Page, ThreadRef


class _Window:
    __slots__ = ("bytes", "committed_at", "events", "recent")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.bytes = 0
        self.committed_at = 0.0
        self.recent: tuple[int, int, Page] | None = None  # after, limit and what was found


class Windows:
    """The newest committed events of the threads that were written last, for readers who are nearly there."""

    def __init__(self) -> None:
        self._windows: OrderedDict[ThreadRef, _Window] = OrderedDict()
        self._bytes = 0

    def add(self, thread: ThreadRef, events: list[Event], now: float) -> None:
        window = self._windows.get(thread)
        if window is None:
            window = self._windows[thread] = _Window()
        else:
            self._windows.move_to_end(thread)
            window.recent = None
            if window.events and window.events[-1].seq + 1 != events[0].seq:
                self._drop(window, len(window.events))  # somebody else wrote in between
        size = sum(len(event.wire) for event in events)
        window.events += events
        window.committed_at = now
        window.bytes += size
        self._bytes += size
        if window.bytes > WINDOW_BYTES_MAX or len(window.events) > 2 * WINDOW_EVENTS_MAX:
            self._drop(window, max(len(window.events) - WINDOW_EVENTS_MAX, len(window.events) // 2))
        while self._bytes > WINDOWS_BYTES_MAX and len(self._windows) > 1:
            _, oldest = self._windows.popitem(last=False)
            self._bytes -= oldest.bytes

    def read(self, thread: ThreadRef, after: int, limit: int) -> Page | None:
        """The events after a seq, or None if the window has none of them: they are in the store, if anywhere.

        A reader may know from the store of events that are committed and not in the window yet.
        Until there are new ones, all who ask the same get the same page.
        """
        window = self._windows.get(thread)
        if window is None or not window.events:
            return None
        if (recent := window.recent) is not None and recent[0] == after and recent[1] == limit:
            return recent[2]
        start = after + 1 - window.events[0].seq
        if not 0 <= start < len(window.events):
            return None
        found = window.events[start : start + limit]
        size = 0
        for index, event in enumerate(found):
            size += len(event.wire)
            if size > PAGE_BYTES_MAX and index:
                found = found[:index]
                break
        page = Page(found, found[-1].seq)
        window.recent = (after, limit, page)
        return page

    def committed_at(self, thread: ThreadRef) -> float | None:
        window = self._windows.get(thread)
        return None if window is None else window.committed_at

    def _drop(self, window: _Window, count: int) -> None:
        size = sum(len(event.wire) for event in window.events[:count])
        del window.events[:count]
        window.bytes -= size
        self._bytes -= size
