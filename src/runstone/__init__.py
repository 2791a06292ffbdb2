"""Runstone: agent runs, written in stone.

Everything public is here; importing this is light, and each name brings what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runstone.app import Runstone
    from runstone.errors import (
        ActionDiverged,
        ActionInterrupted,
        AgentError,
        ApprovalDenied,
        RunFailed,
        RunstoneError,
        ToolError,
    )
    from runstone.runtime.action import Action
    from runstone.runtime.approvals import Decision
    from runstone.runtime.context import History, Run
    from runstone.runtime.message import Message

__version__ = "0.1.0"

__all__ = [
    "Action",
    "ActionDiverged",
    "ActionInterrupted",
    "AgentError",
    "ApprovalDenied",
    "Decision",
    "History",
    "Message",
    "Run",
    "RunFailed",
    "Runstone",
    "RunstoneError",
    "ToolError",
]

_HOMES = {
    "Action": "runstone.runtime.action",
    "ActionDiverged": "runstone.errors",
    "ActionInterrupted": "runstone.errors",
    "AgentError": "runstone.errors",
    "ApprovalDenied": "runstone.errors",
    "Decision": "runstone.runtime.approvals",
    "History": "runstone.runtime.context",
    "Message": "runstone.runtime.message",
    "Run": "runstone.runtime.context",
    "RunFailed": "runstone.errors",
    "Runstone": "runstone.app",
    "RunstoneError": "runstone.errors",
    "ToolError": "runstone.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'runstone' has no attribute {name!r}")
