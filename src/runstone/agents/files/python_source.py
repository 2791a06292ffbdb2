"""Profile Python source: its functions, its imports, what is documented."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from runstone.agents.files.bounds import NAME_CHARS_MAX
from runstone.agents.files.names import clip

IMPORTS_MAX: Final = 50
LONGEST_MAX: Final = 3  # functions named in one Python file


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    line: int
    lines: int


@dataclass(frozen=True, slots=True)
class Python:
    """What a syntax tree tells. `documented` of `documentable`: the module and its public names."""

    functions: int
    classes: int
    longest: list[Function]
    imports: list[str]
    documented: int
    documentable: int
    problem: str | None


def profile_python(source: str) -> Python:
    """Describe Python source from its syntax tree; source that does not parse says where."""
    try:
        # The parser warns about the file's style, on the server's own stderr: not ours to print.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        return unparsed(f"line {error.lineno or 1}: {clip(error.msg, NAME_CHARS_MAX)}")
    except (ValueError, RecursionError, MemoryError) as error:
        return unparsed("holds a NUL character" if isinstance(error, ValueError) else "nested too deeply to parse")
    functions: list[Function] = []
    imports: set[str] = set()
    classes = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append(Function(clip(node.name, NAME_CHARS_MAX), node.lineno, length))
        classes += isinstance(node, ast.ClassDef)
    public = [tree, *_public(tree)]
    return Python(
        functions=len(functions),
        classes=classes,
        longest=sorted(functions, key=lambda each: (-each.lines, each.line))[:LONGEST_MAX],
        imports=sorted(clip(name, NAME_CHARS_MAX) for name in imports)[:IMPORTS_MAX],
        documented=sum(ast.get_docstring(node, clean=False) is not None for node in public),
        documentable=len(public),
        problem=None,
    )


def unparsed(problem: str) -> Python:
    return Python(0, 0, [], [], 0, 0, problem)


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(holder: ast.Module | ast.ClassDef) -> Iterator[_Definition]:
    """The functions and classes that others can reach by name."""
    for node in holder.body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)
