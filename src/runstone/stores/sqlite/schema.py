"""The tables of a SQLite store, as migrations.

Only `events` is the truth; the other tables are derived from it (see `projection`), but for keys and meta.
The big table has an integer key and one narrow index: text keys and wide indexes halve the rate of appends.
"""

from __future__ import annotations

from runstone.stores.migrations import Migration
from runstone.stores.sqlite.stretches import STRETCH

_SPINE = Migration(
    version=1,
    name="spine",
    up=(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """
        CREATE TABLE threads (
            thread_no INTEGER PRIMARY KEY,
            thread_id TEXT NOT NULL UNIQUE,
            user_id TEXT NOT NULL,
            shard INTEGER NOT NULL DEFAULT 1,
            key TEXT,
            title TEXT,
            metadata BLOB NOT NULL,
            created_at INTEGER NOT NULL,
            updated_at INTEGER NOT NULL,
            deleted_at INTEGER
        )
        """,
        "CREATE INDEX threads_by_activity ON threads (user_id, updated_at, thread_id) WHERE deleted_at IS NULL",
        """
        CREATE TABLE runs (
            run_no INTEGER PRIMARY KEY,
            run_id TEXT NOT NULL UNIQUE,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            user_id TEXT NOT NULL,
            key TEXT,
            agent TEXT NOT NULL,
            status TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            owner TEXT,
            input BLOB NOT NULL,
            output BLOB,
            error BLOB,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cached_input_tokens INTEGER,
            reasoning_tokens INTEGER,
            cost REAL,
            metadata BLOB NOT NULL,
            message_id TEXT,
            parent_run_id TEXT REFERENCES runs (run_id),
            root_run_id TEXT NOT NULL,
            on_busy TEXT NOT NULL,
            on_crash TEXT NOT NULL,
            max_attempts INTEGER NOT NULL,
            timeout_s REAL NOT NULL,
            projection_version INTEGER NOT NULL,
            cancel_by TEXT,
            cancel_reason TEXT,
            cancel_deadline TEXT,
            created_at INTEGER NOT NULL,
            started_at INTEGER,
            ended_at INTEGER,
            updated_at INTEGER NOT NULL,
            first_seq INTEGER NOT NULL,
            last_seq INTEGER
        )
        """,
        "CREATE INDEX runs_by_activity ON runs (user_id, updated_at, run_id)",
        "CREATE INDEX runs_of_thread ON runs (thread_id, run_no)",
        "CREATE INDEX runs_of_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL",
        "CREATE INDEX runs_unfinished ON runs (thread_id, run_no) WHERE ended_at IS NULL",
        "CREATE INDEX runs_queued ON runs (run_no) WHERE status = 'queued'",
        """
        CREATE TABLE events (
            pos INTEGER PRIMARY KEY,
            thread_no INTEGER NOT NULL REFERENCES threads (thread_no),
            seq INTEGER NOT NULL,
            run_no INTEGER REFERENCES runs (run_no),
            attempt INTEGER,
            user_id TEXT NOT NULL,
            type TEXT NOT NULL,
            time INTEGER NOT NULL,
            private INTEGER NOT NULL,
            v INTEGER NOT NULL DEFAULT 1,
            codec TEXT,
            key_id TEXT,
            payload BLOB NOT NULL
        )
        """,
        f"CREATE UNIQUE INDEX events_in_stretch ON events ({STRETCH}, thread_no, seq)",
        """
        CREATE TABLE stretches ( -- that have events of a thread, from first_seq on
            thread_no INTEGER NOT NULL REFERENCES threads (thread_no),
            first_seq INTEGER NOT NULL,
            stretch INTEGER NOT NULL,
            PRIMARY KEY (thread_no, first_seq)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE messages (
            message_id TEXT PRIMARY KEY,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            run_id TEXT REFERENCES runs (run_id) DEFERRABLE INITIALLY DEFERRED, -- the message of a run comes before it
            user_id TEXT NOT NULL,
            role TEXT NOT NULL,
            status TEXT NOT NULL,
            reason TEXT,
            parts BLOB,
            length INTEGER,
            finish_reason TEXT,
            metadata BLOB NOT NULL,
            first_seq INTEGER NOT NULL,
            last_seq INTEGER,
            created_at INTEGER NOT NULL
        )
        """,
        "CREATE INDEX messages_of_thread ON messages (thread_id, first_seq)",
        "CREATE INDEX messages_open ON messages (run_id) WHERE status = 'streaming'",
        """
        CREATE TABLE actions (
            action_id TEXT PRIMARY KEY,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            run_id TEXT NOT NULL REFERENCES runs (run_id),
            user_id TEXT NOT NULL,
            tool TEXT NOT NULL,
            executor TEXT NOT NULL,
            input BLOB NOT NULL,
            status TEXT NOT NULL,
            output BLOB,
            error BLOB,
            private INTEGER NOT NULL,
            started_at INTEGER NOT NULL,
            ended_at INTEGER,
            seq INTEGER NOT NULL
        )
        """,
        "CREATE INDEX actions_of_thread ON actions (thread_id, seq)",
        "CREATE INDEX actions_open ON actions (run_id) WHERE status = 'pending'",
        """
        CREATE TABLE state (
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            key TEXT NOT NULL,
            user_id TEXT NOT NULL,
            value BLOB NOT NULL,
            public INTEGER NOT NULL,
            seq INTEGER NOT NULL,
            PRIMARY KEY (thread_id, key)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE keys (
            user_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            digest TEXT NOT NULL,
            made TEXT NOT NULL,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            PRIMARY KEY (user_id, kind, key)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX keys_of_thread ON keys (thread_id)",
    ),
    down=(
        "DROP TABLE keys",
        "DROP TABLE state",
        "DROP TABLE actions",
        "DROP TABLE messages",
        "DROP TABLE stretches",
        "DROP TABLE events",
        "DROP TABLE runs",
        "DROP TABLE threads",
        "DROP TABLE meta",
    ),
)

_ATTEMPTS = Migration(
    version=2,
    name="attempts",
    up=(
        "CREATE TABLE workers (worker_id TEXT PRIMARY KEY, beat INTEGER NOT NULL) WITHOUT ROWID",
        """
        CREATE TABLE steps (
            run_id TEXT NOT NULL REFERENCES runs (run_id),
            key TEXT NOT NULL,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            user_id TEXT NOT NULL,
            output BLOB NOT NULL,
            inner BLOB NOT NULL, -- ids of what was said and done inside
            seq INTEGER NOT NULL,
            PRIMARY KEY (run_id, key)
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE approvals (
            approval_id TEXT PRIMARY KEY,
            thread_id TEXT NOT NULL REFERENCES threads (thread_id),
            run_id TEXT NOT NULL REFERENCES runs (run_id),
            user_id TEXT NOT NULL,
            action_id TEXT,
            key TEXT,
            kind TEXT NOT NULL,
            prompt TEXT NOT NULL,
            input BLOB NOT NULL,
            input_hash TEXT NOT NULL,
            schema BLOB,
            status TEXT NOT NULL,
            value BLOB,
            by TEXT,
            comment TEXT,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            resolved_at INTEGER,
            seq INTEGER NOT NULL
        )
        """,
        "CREATE INDEX approvals_of_user ON approvals (user_id, created_at, approval_id)",
        "CREATE INDEX approvals_of_user_by_status ON approvals (user_id, status, created_at, approval_id)",
        "CREATE INDEX approvals_of_thread ON approvals (thread_id, seq)",
        "CREATE INDEX approvals_of_run ON approvals (run_id, status)",
        "CREATE INDEX approvals_open ON approvals (expires_at) WHERE status = 'open'",
        "CREATE INDEX steps_of_thread ON steps (thread_id)",
        "ALTER TABLE threads ADD COLUMN activity_pos INTEGER NOT NULL DEFAULT 0",
        """
        UPDATE threads SET activity_pos = found.pos FROM (
            SELECT thread_no, max(pos) AS pos FROM events WHERE type IN (
                'thread_created', 'thread_updated', 'thread_deleted', 'user_message', 'run_queued', 'agent_started',
                'message_completed', 'cancel_requested', 'agent_completed', 'agent_failed', 'agent_cancelled'
            ) GROUP BY thread_no
        ) AS found WHERE found.thread_no = threads.thread_no
        """,
        "CREATE INDEX threads_changed ON threads (user_id, activity_pos)",
        "ALTER TABLE runs ADD COLUMN lost INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX runs_of_root ON runs (root_run_id) WHERE ended_at IS NULL",
        """
        CREATE INDEX runs_under_way ON runs (run_no)
        WHERE ended_at IS NULL AND status <> 'queued' AND parent_run_id IS NULL
        """,
        "CREATE INDEX runs_stopping ON runs (cancel_deadline) WHERE ended_at IS NULL AND cancel_deadline IS NOT NULL",
        "ALTER TABLE actions ADD COLUMN key TEXT",
        "ALTER TABLE actions ADD COLUMN retry_of TEXT",
        "ALTER TABLE actions ADD COLUMN beside INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE actions ADD COLUMN inner BLOB",
        "CREATE INDEX actions_of_run ON actions (run_id, seq)",
        "CREATE INDEX messages_of_run ON messages (run_id)",
    ),
    down=(
        "DROP INDEX messages_of_run",
        "DROP INDEX actions_of_run",
        "ALTER TABLE actions DROP COLUMN inner",
        "ALTER TABLE actions DROP COLUMN beside",
        "ALTER TABLE actions DROP COLUMN retry_of",
        "ALTER TABLE actions DROP COLUMN key",
        "DROP INDEX runs_stopping",
        "DROP INDEX runs_under_way",
        "DROP INDEX runs_of_root",
        "ALTER TABLE runs DROP COLUMN lost",
        "DROP INDEX threads_changed",
        "ALTER TABLE threads DROP COLUMN activity_pos",
        "DROP TABLE approvals",
        "DROP TABLE steps",
        "DROP TABLE workers",
    ),
)

MIGRATIONS = (_SPINE, _ATTEMPTS)
