"""Every bound that is not a setting: its unit is the end of its name, its reason stands beside it."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- events and frames ------------------------------------------------------------------------------
EVENT_BYTES_MAX = 768 * KIB  # a frame of one event stays below the 1 MiB that common WebSocket clients accept
DELTA_BYTES_MAX = 32 * KIB  # longer deltas are split, shorter neighbours merge up to this
FRAME_BYTES_SOFT = 256 * KIB  # events gather in a frame up to this
CLIENT_FRAME_BYTES_MAX = 64 * KIB  # what a client says is small; over it: close 4413
BODY_BYTES_MAX = 768 * KIB
BODY_TIMEOUT_S = 30.0  # to send it: 200 kbit/s are enough for the largest
INPUT_BYTES_MAX = 640 * KIB  # inputs and messages, encoded: leaves room for the rest of the event
OUTPUT_BYTES_MAX = 512 * KIB  # of a tool, a step, a run
METADATA_BYTES_MAX = 16 * KIB
TITLE_CHARS_MAX = 1_000
KEY_CHARS_MAX = 256
NAME_CHARS_MAX = 128  # of an agent, a tool, a custom event, a state key
MODEL_CHARS_MAX = 2_048  # of a model's name: some clouds name them by paths
TOKENS_MAX = 2**53 - 1  # of one model call: exact in every JSON reader
PROMPT_CHARS_MAX = 8_000  # of a question to a person: they are to read it
APPROVAL_S_MAX = 366 * 86_400.0  # a year: whatever waits, ends
REASON_CHARS_MAX = 4_000  # of a cancel
MESSAGE_BYTES_MAX = 16 * MIB  # the whole text of one message
ERROR_CHARS_MAX = 8_000  # an exception's message, before it goes into an event
JSON_DEPTH_MAX = 100  # deeper values break other people's parsers
URL_CHARS_MAX = 8_000

# --- pages --------------------------------------------------------------------------------------------
PAGE_ROWS_MAX = 1_000  # a read ends soon, so that no reader holds the file (see docs: delete mode)
PAGE_ROWS_DEFAULT = 100
PAGE_BYTES_MAX = 1 * MIB
LIST_BYTES_MAX = 4 * MIB  # of a list of resources with large contents
PREVIEW_CHARS_MAX = 200  # of a thread's last message

FEED_ROWS_MAX = 100  # threads read at once for a feed: each is some look-ups, together a few milliseconds
FEED_PAUSE_S = 0.1  # between two reads of a feed: what changes a thousand times a second is shown ten times

# --- the log ------------------------------------------------------------------------------------------
RUN_BUFFER_BYTES_MAX = 256 * KIB  # said by a run and not yet committed; beyond it the agent waits
PROCESS_BUFFER_BYTES_MAX = 64 * MIB
BATCH_EVENTS_MAX = 2_000  # a commit stays in the tens of milliseconds
BATCH_BYTES_MAX = 4 * MIB
WINDOW_EVENTS_MAX = 1_000  # of a thread's newest events kept in memory for its viewers
WINDOW_BYTES_MAX = 1 * MIB
WINDOWS_BYTES_MAX = 64 * MIB  # of all threads; the least recently written go first
THREAD_IMPORT_MESSAGES_MAX = 1_000

# --- connections --------------------------------------------------------------------------------------
SUBSCRIPTIONS_MAX = 100  # threads on one socket
WAIT_S_MAX = 60.0
