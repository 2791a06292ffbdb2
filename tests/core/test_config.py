"""Settings: where they come from, which wins, what is refused, and that each is in the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runstone.config import Config, load
from runstone.errors import BadConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Config.model_fields:
        monkeypatch.delenv(f"RUNSTONE_{name.upper()}", raising=False)


def test_a_flag_wins_over_the_environment_over_the_app_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}, {}).port == 8700
    assert load({}, {"port": 1}).port == 1
    monkeypatch.setenv("RUNSTONE_PORT", "2")
    assert load({}, {"port": 1}).port == 2
    assert load({"port": None}, {"port": 1}).port == 2
    assert load({"port": 3}, {"port": 1}).port == 3


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNSTONE_ORIGINS", " https://a.example , ,http://b.example:1 ")
    assert load({}, {}).origins == ("https://a.example", "http://b.example:1")
    assert load({"hosts": "a,b"}, {}).hosts == ("a", "b")
    assert load({}, {"hosts": ["a"]}).hosts == ("a",)


@pytest.mark.parametrize(
    ("flags", "app", "environment", "name"),
    [
        ({"port": 65536}, {}, {}, "port"),
        ({"port": "many"}, {}, {}, "port"),
        ({}, {"slots": 0}, {}, "slots"),
        ({}, {}, {"RUNSTONE_HEARTBEAT_S": "0"}, "RUNSTONE_HEARTBEAT_S"),
        ({}, {}, {"RUNSTONE_BROKER": "carrier pigeon"}, "RUNSTONE_BROKER"),
        ({}, {"prot": 1}, {}, "prot"),
        ({}, {}, {"RUNSTONE_DEBUG": "perhaps"}, "RUNSTONE_DEBUG"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(
    flags: dict[str, Any],
    app: dict[str, Any],
    environment: dict[str, str],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(BadConfig) as caught:
        load(flags, app)
    assert name in str(caught.value)
    assert caught.value.exit_code == 2


def test_settings_do_not_change() -> None:
    config = load({}, {})
    with pytest.raises(ValidationError):
        config.port = 1


def test_every_setting_is_in_the_docs_with_its_variable_and_no_other_is() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert rows == {name: f"RUNSTONE_{name.upper()}" for name in Config.model_fields}


def test_the_docs_say_the_defaults() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Config.model_fields.items():
        (row,) = re.findall(rf"^\| `{name}` .*$", page, re.MULTILINE)
        default = row.split(" | ")[3].strip("` ")
        shown = {(): "none", False: "false"}.get(field.default, field.default)
        if isinstance(shown, float | int):
            assert float(default.replace(",", "")) == shown
        else:
            assert default == shown


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in Config.model_fields.values())
