"""What the agent thinks aloud between its steps: what it saw, and what it does next for which reason."""

from __future__ import annotations

from runstone.agents.files import Entry, Listing, Profile, Search, clip
from runstone.agents.report.choice import OPENED_MAX
from runstone.agents.report.findings import LONG_FUNCTION_LINES, Finding
from runstone.agents.report.markdown import PATH_CHARS_MAX, count, percent, size


def plan(listing: Listing, opened: list[Entry]) -> str:
    """The reasoning between the listing and the first file."""
    if not listing.file_count:
        passed = f" ({count(listing.hidden_count, 'hidden name')} passed over)" if listing.hidden_count else ""
        return f"There is no file here{passed}, so nothing to open. The report will say just that."
    by_count = max(listing.kinds.items(), key=lambda item: (item[1].files, item[0]))
    by_size = max(listing.kinds.items(), key=lambda item: (item[1].bytes, item[0]))
    thought = (
        f"{count(listing.file_count, 'file')}, {size(listing.byte_count)}. Most are {by_count[0]} "
        f"({by_count[1].files:,})"
    )
    if by_size[0] == by_count[0]:
        thought += f", and they hold most of the bytes ({percent(by_size[1].bytes, listing.byte_count)}). "
    else:
        share = percent(by_size[1].bytes, listing.byte_count)
        thought += f", but {by_size[0]} files hold {share} of the bytes. "
    if not opened:
        return thought + "None of it is text that I can profile, so sizes are all I can speak of."
    groups = {kind: [entry for entry in opened if entry.kind == kind] for kind in OPENED_MAX}
    steps = []
    for kind, group in groups.items():
        total = sum(entry.kind == kind for entry in listing.files)
        if len(group) == 1 == total:
            steps.append(f"the only {kind} file, {clip(group[0].path, PATH_CHARS_MAX)}")
        elif group:
            largest = f"the {len(group)} largest of {total}" if len(group) < total else f"all {total}"
            steps.append(f"{largest} {kind} files, {clip(group[0].path, PATH_CHARS_MAX)} first")
    thought += f"I open {', then '.join(steps)}."
    if groups["table"] or groups["json"]:
        thought += " Data comes before code, because gaps and odd values in it are what nobody sees by reading."
    return thought


def after_data(profiles: list[Profile], findings: list[Finding], opened: list[Entry]) -> str:
    """The reasoning between the data files and the rest."""
    ahead = len(opened) - len(profiles)
    if findings:
        counts: dict[str, int] = {}
        for finding in findings:
            counts[finding.path] = counts.get(finding.path, 0) + 1
        worst = max(counts, key=lambda path: (counts[path], path))
        most = f"most on {clip(worst, PATH_CHARS_MAX)} ({counts[worst]})"
        seen = f"{count(len(findings), 'remark')} on the data, {most}."
    else:
        seen = f"{count(len(profiles), 'data file')} without a gap or an odd value that stands out."
    return (
        f"{seen} Next {count(ahead, 'file')} of code and text: there I look for what does not parse, and for "
        f"functions over {LONG_FUNCTION_LINES} lines."
    )


def about_todos(todos: Search) -> str:
    """The reasoning after the search for notes."""
    searched = count(todos.files_searched, "file")
    if not todos.matches:
        return f"No TODO, FIXME, XXX or HACK in {searched}; what is left is to sum up."
    holders = {match.path for match in todos.matches}
    return (
        f"{count(len(todos.matches), 'note')} to self in {len(holders):,} of {searched}"
        f"{', and the search stopped there' if todos.cut else ''}. I list them as they stand, then sum up."
    )
