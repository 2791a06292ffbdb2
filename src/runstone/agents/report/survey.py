"""Look through a folder in order, and say while looking what is there."""

from __future__ import annotations

import re
from asyncio import to_thread
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from runstone.agents import files
from runstone.agents.files import MARKS_PATTERN, Entry, Excerpt, FileError, Kind, Listing, Profile, Search, clip
from runstone.agents.report.choice import choose, without
from runstone.agents.report.findings import Finding, code_findings, data_findings, size_findings
from runstone.agents.report.markdown import PATH_CHARS_MAX, bullets, code_span
from runstone.agents.report.saving import MARKER, Written
from runstone.agents.report.sections import code_section, conclusion, data_section, first_paragraph, overview, todo_list
from runstone.agents.report.thoughts import about_todos, after_data, plan
from runstone.agents.report.voice import Teller, Voice
from runstone.errors import AgentError

DATA: Final[tuple[Kind, ...]] = ("table", "json")
# Where people leave notes to themselves.
PROSE_AND_CODE: Final = ["python", "code", "markdown", "text", "other"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How many files and bytes there are, what was worth a remark, and where the report is."""

    files: int
    bytes: int
    findings: int
    report: str | None


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that the survey calls, each with a folder first."""

    list_files: Callable[[str], Awaitable[Listing]]
    read_file: Callable[[str, str], Awaitable[Excerpt]]
    profile_file: Callable[[str, str], Awaitable[Profile]]
    search_files: Callable[[str, str, list[str]], Awaitable[Search]]
    write_report: Callable[[str, str], Awaitable[Written]]


async def survey(voice: Voice, tools: Tools, folder: str) -> Summary:
    """Look through `folder`, say what is there, and write it down."""
    try:
        await to_thread(files.folder, folder)
    except FileError as error:
        raise AgentError(str(error)) from error
    await voice.think(
        f"First the names, sizes and kinds of everything under {clip(folder, PATH_CHARS_MAX)}: "
        "they say what is worth opening.\n"
    )
    listing = await tools.list_files(folder)
    own = await _own_reports(tools, folder, listing)
    listing = without(listing, own)
    opened = choose(listing)
    await voice.think(plan(listing, opened) + "\n")
    findings: list[Finding] = []
    async with voice.message() as writing:
        teller = Teller(writing)
        await teller.say(f"# Report on {Path(listing.root).name or listing.root}", *overview(listing))
        await _readme(teller, tools, folder, listing)
        profiles = await _profiles(voice, teller, tools, folder, opened, findings)
        code = [profile for profile in profiles if profile.text and profile.kind not in DATA]
        if code:
            findings += await _code(teller, code)
        findings += await _sizes(teller, listing)
        todos = await tools.search_files(folder, MARKS_PATTERN, PROSE_AND_CODE)
        reports = {entry.path for entry in own}
        todos = replace(
            todos,
            matches=[match for match in todos.matches if match.path not in reports],
            files_searched=todos.files_searched - len(own),
        )
        await voice.think(about_todos(todos) + "\n")
        await teller.say(*todo_list(todos))
        await teller.say(*conclusion(findings, listing, opened))
        written = await tools.write_report(folder, MARKER + "\n\n" + "".join(teller.said))
        await teller.say(
            f"Written to {code_span(written.path)}."
            if written.path
            else f"The report could not be written: {written.problem}. It is in this message."
        )
    return Summary(listing.file_count, listing.byte_count, len(findings), written.path)


async def _own_reports(tools: Tools, folder: str, listing: Listing) -> list[Entry]:
    """Earlier reports of ours. They are left out, or each report would report the one before."""
    own = []
    for entry in listing.files:
        if re.fullmatch(r"report(-[0-9]{1,2})?\.md", entry.path):
            excerpt = await tools.read_file(folder, entry.path)
            if excerpt.text.startswith(MARKER):
                own.append(entry)
    return own


async def _readme(teller: Teller, tools: Tools, folder: str, listing: Listing) -> None:
    readme = next((each for each in listing.files if re.fullmatch(r"(?i)readme(\.\w+)?", each.path)), None)
    if readme is None or readme.kind not in ("markdown", "text"):
        return
    said = first_paragraph((await tools.read_file(folder, readme.path)).text)
    if said:
        await teller.say("## What it says it is", f"> {said}", f"From {code_span(readme.path)}.")


async def _profiles(
    voice: Voice, teller: Teller, tools: Tools, folder: str, opened: list[Entry], findings: list[Finding]
) -> list[Profile]:
    """Open the chosen files in order; tell of data at once, and think where data ends and the rest begins."""
    profiles: list[Profile] = []
    told = False
    for entry in opened:
        if profiles and opened[len(profiles) - 1].kind in DATA and entry.kind not in DATA:
            await voice.think(after_data(profiles, findings, opened) + "\n")
        profile = await tools.profile_file(folder, entry.path)
        profiles.append(profile)
        if profile.problem:
            findings.append(Finding(entry.path, f"cannot be read: {profile.problem}"))
        elif profile.kind == "binary":
            findings.append(Finding(entry.path, f"is binary, though its name says {entry.kind}"))
        elif profile.kind in DATA:
            if not told:
                await teller.say("## Data")
            told = True
            found = data_findings(profile)
            findings += found
            await teller.say(*data_section(profile, found))
    return profiles


async def _code(teller: Teller, profiles: list[Profile]) -> list[Finding]:
    found = code_findings(profiles)
    await teller.say("## Code and text", *code_section(profiles))
    await _remarks(teller, found)
    return found


async def _sizes(teller: Teller, listing: Listing) -> list[Finding]:
    found = size_findings(listing)
    if found:
        await teller.say("## Sizes")
        await _remarks(teller, found)
    return found


async def _remarks(teller: Teller, found: list[Finding]) -> None:
    if found:
        await teller.say(bullets([f"{code_span(each.path)}: {each.text}" for each in found]))
