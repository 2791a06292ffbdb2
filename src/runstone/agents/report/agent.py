"""Register the agent `report` and the tools it looks with."""

from typing import TYPE_CHECKING, Final

from runstone.agents import files
from runstone.agents.files import Excerpt, Listing, Profile, Search, clip
from runstone.agents.report.saving import Written, save_report
from runstone.agents.report.survey import Tools, survey
from runstone.errors import AgentError, ToolError

if TYPE_CHECKING:
    from runstone import Runstone

TITLE_CHARS_MAX: Final = 80
TOOL_TIMEOUT_S: Final = 120.0  # each reads a bounded number of bytes; this is for a disk that hangs


def register(app: "Runstone") -> None:
    """Add the agent `report` to an app."""
    from runstone import Run

    tool = app.tool(timeout_s=TOOL_TIMEOUT_S, idempotent=True)  # looking twice is no harm; a report is replaced

    @tool
    def list_files(folder: str) -> Listing:
        return files.list_files(folder)

    @tool
    def read_file(folder: str, path: str) -> Excerpt:
        return files.read_file(folder, path)

    @tool
    def profile_file(folder: str, path: str) -> Profile:
        return files.profile_file(folder, path)

    @tool
    def search_files(folder: str, pattern: str, kinds: list[str]) -> Search:
        return files.search_files(folder, pattern, kinds=kinds)

    @tool
    def write_report(folder: str, text: str) -> Written:
        return save_report(folder, text)

    tools = Tools(list_files, read_file, profile_file, search_files, write_report)

    @app.agent
    async def report(run: Run, folder: str = ".") -> dict[str, int | str | None]:
        """Look through a folder, tell what is in it, and write it to report.md there."""
        await run.set_title(f"Report on {clip(folder, TITLE_CHARS_MAX)}")
        try:
            summary = await survey(run, tools, folder)
        except ToolError as error:
            raise AgentError(str(error)) from error
        return {
            "files": summary.files,
            "bytes": summary.bytes,
            "findings": summary.findings,
            "report": summary.report,
        }
