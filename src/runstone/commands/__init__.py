"""Commands: what people and the runtime ask of the log, decided by pure functions of the facts.

Each function here makes a `Command`: it names the facts, and decides on them, inside the transaction, what to append.
"""

from runstone.commands.approvals import Answer, Answered, expire_approvals, resolve_approval
from runstone.commands.attempts import (
    Claimed,
    Fence,
    LeftBy,
    NewChild,
    beat,
    bury,
    call_agent,
    claim_runs,
    end_run,
    end_stopping,
    release_runs,
)
from runstone.commands.ends import Cancelled, Completed, Failed, Outcome
from runstone.commands.keys import Key, Made
from runstone.commands.runs import CANCEL_DEADLINE_S, NewRun, cancel_run, start_run
from runstone.commands.threads import ImportedMessage, NewThread, create_thread, delete_thread, update_thread

__all__ = [
    "CANCEL_DEADLINE_S",
    "Answer",
    "Answered",
    "Cancelled",
    "Claimed",
    "Completed",
    "Failed",
    "Fence",
    "ImportedMessage",
    "Key",
    "LeftBy",
    "Made",
    "NewChild",
    "NewRun",
    "NewThread",
    "Outcome",
    "beat",
    "bury",
    "call_agent",
    "cancel_run",
    "claim_runs",
    "create_thread",
    "delete_thread",
    "end_run",
    "end_stopping",
    "expire_approvals",
    "release_runs",
    "resolve_approval",
    "start_run",
    "update_thread",
]
