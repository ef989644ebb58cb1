"""Settings: defaults, then the environment, then flags; slips are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolcache.main import _parser, _settings
from toolcache.settings import Limits, Settings, SettingsInvalid


def test_without_anything_the_defaults_hold() -> None:
    assert Settings.read({"PATH": "/bin"}) == Settings()
    assert (Settings().host, Settings().port, str(Settings().store)) == ("127.0.0.1", 8765, "toolcache.sqlite3")


def test_the_environment_overrules_the_defaults() -> None:
    given = {"HOST": "::1", "PORT": "9", "STORE": "/d/c", "URL": "http://c", "MAX_BODY_BYTES": "7", "MAX_ITEMS": "3"}
    assert Settings.read({f"TOOLCACHE_{name}": value for name, value in given.items()}) == Settings(
        host="::1", port=9, store=Path("/d/c"), url="http://c", limits=Limits(body_bytes=7, items=3)
    )


def test_a_slip_in_a_name_or_a_number_is_told() -> None:
    with pytest.raises(SettingsInvalid, match=r"TOOLCACHE_PROT; after TOOLCACHE_ may stand.*PORT"):
        Settings.read({"TOOLCACHE_PROT": "9"})
    with pytest.raises(SettingsInvalid, match="TOOLCACHE_PORT must be a whole number, not 'http'"):
        Settings.read({"TOOLCACHE_PORT": "http"})


def test_flags_overrule_the_environment_also_for_the_other_kind_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLCACHE_URL", "http://service")
    monkeypatch.setenv("TOOLCACHE_STORE", "environment.sqlite3")

    def chosen(*flags: str) -> tuple[str, str]:
        settings = _settings(_parser().parse_args(["stats", *flags]))
        return settings.url, str(settings.store)

    assert chosen() == ("http://service", "environment.sqlite3")
    assert chosen("--store", "flag.sqlite3") == ("", "flag.sqlite3")
    assert chosen("--url", "http://flag") == ("http://flag", "environment.sqlite3")
