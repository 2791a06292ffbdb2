"""Look into a folder without surprises: list, read, profile and search its files, always within bounds.

Plain functions from a folder to small records that are JSON once encoded, so they serve as tools as they
stand. Two kinds of trouble are kept apart. What the caller did wrong (no such folder, a path that leads out
of it, a bad pattern) raises `FileError`. What the world does (a file that vanished, may not be read, is
binary or broken) is an answer: `problem` says it.

Symbolic links are never followed and only regular files are opened. Files are cut, never refused: a result
says how many bytes it looked at. Names that are not UTF-8 are written with `\\xNN` for each odd byte, and
are understood in that form.
"""

from runstone.agents.files.columns import Column
from runstone.agents.files.folders import FileError, folder, reason_of
from runstone.agents.files.kinds import Kind
from runstone.agents.files.listing import Entry, Listing, Tally, list_files
from runstone.agents.files.names import clip
from runstone.agents.files.profiles import PROFILE_BYTES_MAX, Profile, profile_file
from runstone.agents.files.reading import Excerpt, read_file
from runstone.agents.files.search import Search, search_files
from runstone.agents.files.text import MARKS_PATTERN

__all__ = [
    "MARKS_PATTERN",
    "PROFILE_BYTES_MAX",
    "Column",
    "Entry",
    "Excerpt",
    "FileError",
    "Kind",
    "Listing",
    "Profile",
    "Search",
    "Tally",
    "clip",
    "folder",
    "list_files",
    "profile_file",
    "read_file",
    "reason_of",
    "search_files",
]
