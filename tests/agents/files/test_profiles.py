"""Any file has a profile, whatever its name says and its bytes are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runstone.agents.files import profile_file, profiles
from runstone.agents.files.json_documents import profile_json, profile_json_lines
from runstone.agents.files.python_source import profile_python
from runstone.agents.files.tables import profile_table
from runstone.agents.files.text import profile_text
from runstone.limits import KIB
from tests.support.folders import json_bytes, put

LINES = st.text(alphabet=st.sampled_from(list("ab,;\t|\"'\n\r 019.-eE\x00é😀{}[]:#\\")), max_size=200)


@given(
    name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.py", "a.md", "a.c", "a", "a.png"]),
    content=st.one_of(st.binary(max_size=300), LINES.map(str.encode), st.text(max_size=100).map(str.encode)),
)
def test_no_content_makes_a_profile_fail_or_be_no_json(tmp_path_factory, name, content):
    root = tmp_path_factory.getbasetemp()
    put(root, name, content)
    profile = profile_file(str(root), name)
    assert profile.bytes_seen == len(content)
    assert json_bytes(profile) < 512 * KIB


def test_an_empty_file_of_any_kind_has_a_profile(tmp_path):
    for name in ("a.csv", "a.json", "a.jsonl", "a.py", "a.md", "a.bin"):
        put(tmp_path, name)
        profile = profile_file(str(tmp_path), name)
        assert (profile.bytes, profile.problem) == (0, None)


def test_a_huge_table_is_read_up_to_the_bound_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "PROFILE_BYTES_MAX", 10_000)
    put(tmp_path, "big.csv", "id,name\n" + "".join(f"{number},someone\n" for number in range(10_000)))
    profile = profile_file(str(tmp_path), "big.csv")
    assert (profile.cut, profile.bytes_seen) == (True, 10_000)
    assert profile.table
    assert profile.table.ragged == 0
    assert 8_000 < (profile.table.rows_estimated or 0) < 12_000


@given(text=LINES, cut=st.booleans())
def test_any_text_profiles_as_any_kind(text, cut):
    for profile in (profile_table, profile_json, profile_json_lines):
        json_bytes(profile(text, cut=cut))
    json_bytes(profile_python(text))
    json_bytes(profile_text(text, headings=True))
