"""Runstone: agent runs, written in stone.

Everything public is here; importing this is light, and each name brings what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runstone.app import Runstone
    from runstone.errors import AgentError, RunstoneError, ToolError
    from runstone.runtime.context import Action, History, Message, Run

__version__ = "0.1.0"

__all__ = [
    "Action",
    "AgentError",
    "History",
    "Message",
    "Run",
    "Runstone",
    "RunstoneError",
    "ToolError",
]

_HOMES = {
    "Action": "runstone.runtime.context",
    "AgentError": "runstone.errors",
    "History": "runstone.runtime.context",
    "Message": "runstone.runtime.context",
    "Run": "runstone.runtime.context",
    "Runstone": "runstone.app",
    "RunstoneError": "runstone.errors",
    "ToolError": "runstone.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'runstone' has no attribute {name!r}")
