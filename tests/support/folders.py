"""Folders of files to look into, and what a record of them weighs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path


def put(root: Path, name: str, content: str | bytes = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_bytes(record) -> int:
    return len(json.dumps(asdict(record), allow_nan=False).encode())
