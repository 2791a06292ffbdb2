"""Python is read from its syntax tree, and any text by its lines."""

from __future__ import annotations

import pytest

from runstone.agents.files.python_source import Function, profile_python
from runstone.agents.files.text import profile_text


def test_python_is_read_from_its_syntax_tree():
    source = (
        '"""A module."""\nimport os.path\nfrom json import loads\nfrom . import near\n\n'
        'class Thing:\n    def method(self):\n        """Says."""\n        return 1\n\n'
        "async def _hidden():\n    def inner():\n        pass\n"
    )
    shape = profile_python(source)
    assert (shape.functions, shape.classes, shape.imports) == (3, 1, ["json", "os"])
    assert (shape.documented, shape.documentable) == (2, 3)
    assert shape.longest[0] == Function("method", 7, 3)


@pytest.mark.parametrize("source", ["def f(:\n", "x = 1\n  y", "(" * 500, "-" * 200_000 + "1", "a\0b", "\ud800"])
def test_python_that_does_not_parse_says_why(source):
    assert profile_python(source).problem


def test_text_is_counted_by_line():
    shape = profile_text("# One\n\n```\n# no heading\n```\n## Two TODO\nlast", headings=True)
    assert (shape.lines, shape.blank, shape.marks) == (7, 1, 1)
    assert shape.headings == ["# One", "## Two TODO"]
    assert (shape.longest_line, shape.longest_line_at) == (12, 4)
