"""The tree of errors: each with its code on the wire, its status, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class RunstoneError(Exception):
    """Something that Runstone refuses or cannot do.

    `code` is for programs, the message says what is wrong, `remedy` what to do. `status` is the HTTP
    status that the gateway answers with, `exit_code` what the command line ends with.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    exit_code: ClassVar[int] = 1
    remedy: str = "Look for the error's id in the server's log."

    def __init__(self, detail: str, *, remedy: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if remedy is not None:
            self.remedy = remedy

    def problem(self) -> dict[str, object]:
        """The error as an RFC 9457 problem."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "remedy": self.remedy,
        }


# --- what a client did ---------------------------------------------------------------------------


class BadJson(RunstoneError):
    code, status, title = "bad_json", 400, "Not JSON"
    remedy = "Send one JSON object."


class UnknownSubprotocol(RunstoneError):
    code, status, title = "unknown_subprotocol", 400, "Unknown subprotocol"
    remedy = "Offer runstone.v1, or no subprotocol."


class Unauthenticated(RunstoneError):
    code, status, title = "unauthenticated", 401, "Who are you?"
    remedy = "Send a credential."


class Forbidden(RunstoneError):
    code, status, title = "forbidden", 403, "Forbidden"
    remedy = "Ask from this machine, at the server's own address, without a proxy; or configure auth."


class NotFound(RunstoneError):
    """Unknown, deleted, or somebody else's: the three are not told apart."""

    code, status, title = "not_found", 404, "Not found"
    remedy = "Check the id."


class UnknownAgent(RunstoneError):
    code, status, title = "unknown_agent", 404, "Unknown agent"
    remedy = "GET /v1/agents lists the agents."


class MethodNotAllowed(RunstoneError):
    code, status, title = "method_not_allowed", 405, "Method not allowed"
    remedy = "See /openapi.json for what this path takes."


class TooSlow(RunstoneError):
    code, status, title = "too_slow", 408, "The body took too long"
    remedy = "Send it again over a better line, or send less."


class ThreadBusy(RunstoneError):
    code, status, title = "thread_busy", 409, "The thread has an unfinished run"
    remedy = "Wait for its end, cancel it, or start with on_busy enqueue or interrupt."


class AlreadyDecided(RunstoneError):
    code, status, title = "already_decided", 409, "It was decided before"
    remedy = "GET /v1/approvals shows how it stands."


class CursorAhead(RunstoneError):
    code, status, title = "cursor_ahead", 409, "The cursor is beyond the head"
    remedy = "Read again from 0: this cursor belongs to another thread or another history."


class GenerationChanged(RunstoneError):
    code, status, title = "generation_changed", 409, "This is another history"
    remedy = "Forget your cursors and read again from 0."


class CursorGone(RunstoneError):
    code, status, title = "cursor_gone", 410, "The events at the cursor are no longer kept"

    def __init__(self, detail: str, *, first: int) -> None:
        super().__init__(detail, remedy=f"Start again with after={first - 1}.")
        self.first = first

    def problem(self) -> dict[str, object]:
        return super().problem() | {"first": self.first}


class TooLarge(RunstoneError):
    code, status, title = "too_large", 413, "Too large"
    remedy = "Send less, or send a file part with a url."


class UnsupportedMedia(RunstoneError):
    code, status, title = "unsupported_media", 415, "Not a JSON media type"
    remedy = "Send Content-Type: application/json."


class Invalid(RunstoneError):
    """Well-formed, but not what is asked for; `errors` says where."""

    code, status, title = "invalid", 422, "Invalid request"
    exit_code = 2
    remedy = "Correct what errors names."

    def __init__(self, detail: str, errors: Sequence[Mapping[str, str]] = (), *, remedy: str | None = None) -> None:
        super().__init__(detail, remedy=remedy)
        self.errors = [dict(error) for error in errors]

    @classmethod
    def at(cls, path: str, detail: str) -> Invalid:
        return cls(f"{path}: {detail}", [{"path": path, "detail": detail}])

    def problem(self) -> dict[str, object]:
        return super().problem() | {"errors": self.errors}


class KeyReused(RunstoneError):
    code, status, title = "key_reused", 422, "The key was used with another body"
    remedy = "Use a new key for a new request; repeat the same body to repeat a request."


class Limited(RunstoneError):
    code, status, title = "limited", 429, "Too many"
    remedy = "Close what you no longer need, or try again later."


# --- what the server is in -----------------------------------------------------------------------


class Unavailable(RunstoneError):
    """`retry_after_s` is when to ask again, where that is known."""

    code, status, title = "unavailable", 503, "Not ready"
    remedy = "Try again in a moment."

    def __init__(self, detail: str, *, remedy: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail, remedy=remedy)
        self.retry_after_s = retry_after_s


class StoreFailed(RunstoneError):
    """The disk refused a write: nothing more is acknowledged or shown until a restart."""

    code, status, title = "store_failed", 503, "The store failed"
    remedy = "Free disk space or mend the disk, then start the server again; nothing acknowledged is lost."


class ShutdownUnfinished(RunstoneError):
    """The process ends before all of it has ended."""

    code, title = "shutdown_unfinished", "The shutdown did not end in time"
    remedy = "Nothing acknowledged is lost: the next start takes care of the runs. The log names what did not stop."


# --- what a store, a setting or an address refuses at start ----------------------------------------


class StoreLocked(RunstoneError):
    code, title = "store_locked", "The store is in use"
    remedy = "Stop the other process, or give this one a store of its own with --store."


class StoreTooNew(RunstoneError):
    code, title = "store_too_new", "The store was written by a newer Runstone"
    remedy = "Install that version or a newer one."


class StoreOutdated(RunstoneError):
    code, title = "store_outdated", "The store's schema is not this version's"
    remedy = "Run `runstone db upgrade`."


class BadConfig(RunstoneError):
    code, title, exit_code = "bad_config", "A setting is wrong", 2
    remedy = "See docs/settings.md."


# --- inside a run ----------------------------------------------------------------------------------


class AgentError(RunstoneError):
    """Raise it in an agent to end the run as failed with a message that people may read."""

    code, title = "agent_error", "The agent failed"
    remedy = "See the run's error."

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class ToolError(RunstoneError):
    """A tool failed; what the tool raised is told by `type` and the message."""

    code, title = "tool_error", "The tool failed"
    remedy = "See the action's error."

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


class OutputTooLarge(RunstoneError):
    code, title = "output_too_large", "The output is too large"
    remedy = "Return less; keep large results in a file and return its name."


class StaleWorker(RunstoneError):
    """The worker was silent for too long, and taken for dead."""

    code, title = "stale_worker", "This worker was taken for dead"
    remedy = "It stops its runs, which may be others' by now, and registers anew."


class ActionInterrupted(RunstoneError):
    """An earlier attempt died while this call was under way; whether it had its effect is not known."""

    code, title = "action_interrupted", "The call was interrupted"
    remedy = "Find out whether it took effect; or declare the tool idempotent=True, and it is run again."


class ActionDiverged(RunstoneError):
    """The agent asks for another call than in the attempt before, which a tool that is not idempotent may not get."""

    code, title = "action_diverged", "The agent took another path than before"
    remedy = "Record what made the difference in a step (await run.step(…)), or declare the tool idempotent=True."


class ApprovalDenied(RunstoneError):
    """Nobody approved: it was denied, it expired, or it was cancelled."""

    code, title = "approval_denied", "It was not approved"
    remedy = "Do without it, or ask again."


class RunFailed(RunstoneError):
    """A run that this one called did not complete."""

    code, title = "run_failed", "A run that was called did not complete"
    remedy = "See the run's error."

    def __init__(self, run_id: str, status: str, type: str, message: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.run_status = status
        self.type = type


class StaleAttempt(RunstoneError):
    """The run has ended or has another owner; this attempt can write nothing more."""

    code, title = "stale_attempt", "This attempt no longer owns its run"
    remedy = "Stop: the run's log has gone on without this attempt."
