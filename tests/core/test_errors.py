"""The tree of errors: each with a code, a status, a title and a remedy, and one class per code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runstone import errors
from runstone.errors import RunstoneError


def tree(root: type[RunstoneError] = RunstoneError) -> Iterator[type[RunstoneError]]:
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from tree(kind)


def test_every_error_has_a_code_of_its_own_a_title_and_a_remedy() -> None:
    kinds = list(tree())
    assert len(kinds) > 20
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.title
        assert kind.code == kind.code.lower()
        assert kind.exit_code in {1, 2}
        assert kind.status >= 400


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.code)
def test_every_error_can_be_told_as_a_problem(kind: type[RunstoneError]) -> None:
    made = {
        "cursor_gone": lambda: errors.CursorGone("gone", first=7),
        "tool_error": lambda: errors.ToolError("ValueError", "gone"),
        "run_failed": lambda: errors.RunFailed("run_1", "failed", "ValueError", "gone"),
    }.get(kind.code, lambda: kind("gone"))()
    problem = made.problem()
    assert problem["detail"] == str(made) == "gone"
    assert (problem["code"], problem["status"], problem["title"]) == (kind.code, kind.status, kind.title)
    assert isinstance(problem["remedy"], str)
    assert problem["remedy"]
