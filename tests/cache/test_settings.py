"""Settings: defaults, then the environment, then flags; slips are told, secrets are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolcache.commands.arguments import parser
from toolcache.core.access import hash_of
from toolcache.main import _settings
from toolcache.settings import Limits, Settings, SettingsInvalid, without_login

ADMIN_KEY = "correct horse battery staple"


def read(**given: str) -> Settings:
    return Settings.read({f"TOOLCACHE_{name}": value for name, value in given.items()})


def test_without_anything_the_defaults_hold() -> None:
    assert Settings.read({"PATH": "/bin"}) == Settings()
    assert (Settings().host, Settings().port, Settings().store) == ("127.0.0.1", 8765, "toolcache.sqlite3")
    assert not Settings().asks_for_keys


def test_the_environment_overrules_the_defaults() -> None:
    assert read(
        HOST="::1",
        PORT="9",
        STORE="/d/c",
        URL="http://c",
        API_KEY="tck_a_b",
        ACCESS="keys",
        ADMIN_KEY=ADMIN_KEY,
        EMBEDDER_DIR="/e",
        MAX_BODY_BYTES="7",
        MAX_ITEMS="3",
        MAX_RESULT_BYTES="5",
        MAX_IN_FLIGHT="11",
        MAX_WAITING="13",
    ) == Settings(
        host="::1",
        port=9,
        store="/d/c",
        url="http://c",
        api_key="tck_a_b",
        access="keys",
        admin_key_hash=hash_of(ADMIN_KEY),
        embedder_dir=Path("/e"),
        limits=Limits(body_bytes=7, items=3, result_bytes=5, in_flight=11, waiting=13),
    )


def test_what_is_empty_in_the_environment_is_not_set() -> None:
    names = ("HOST", "PORT", "STORE", "URL", "API_KEY", "ACCESS", "ADMIN_KEY", "EMBEDDER_DIR", "MAX_ITEMS")
    assert read(**dict.fromkeys(names, "")) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PROT", "9", r"TOOLCACHE_PROT; after TOOLCACHE_ may stand.*PORT"),
        ("PORT", "http", "TOOLCACHE_PORT must be a whole number, not 'http'"),
        ("PORT", "-1", "TOOLCACHE_PORT is -1; it must be at least 0"),
        ("MAX_ITEMS", "0", "TOOLCACHE_MAX_ITEMS is 0; it must be at least 1"),
        ("MAX_IN_FLIGHT", "1.5", "TOOLCACHE_MAX_IN_FLIGHT must be a whole number"),
        ("ACCESS", "closed", "'closed'; it must be one of auto, open, keys"),
        ("ADMIN_KEY", "fifteen letters", "shorter than 16 characters"),
    ],
)
def test_a_slip_is_told(name: str, value: str, told: str) -> None:
    with pytest.raises(SettingsInvalid, match=told):
        read(**{name: value})


def test_secrets_are_neither_kept_in_clear_nor_shown() -> None:
    settings = read(ADMIN_KEY=f" {ADMIN_KEY}\n", API_KEY="tck_a_secret", STORE="redis://me:hunter2@h:6379/0")
    assert settings.admin_key_hash == hash_of(ADMIN_KEY)
    assert ADMIN_KEY not in str([getattr(settings, name) for name in Settings.__slots__])
    assert settings.store_name == "redis://h:6379/0"
    shown = repr(settings)
    assert ADMIN_KEY not in shown
    assert hash_of(ADMIN_KEY) not in shown
    assert "secret" not in shown
    assert "hunter2" not in shown
    with pytest.raises(SettingsInvalid) as refused:
        read(ADMIN_KEY="hunter2")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rediss://:word@h/0", "rediss://h/0"),
        ("redis://h/0", "redis://h/0"),
        ("no answer from redis+cluster://a:b@h:1, redis://c:d@i", "no answer from redis+cluster://h:1, redis://i"),
        ("/data/me@home.sqlite3", "/data/me@home.sqlite3"),
        ("redis://:sec@ret@host", "redis://host"),
        ("redis://u:p/w@host:1/0: no answer", "redis://host:1/0: no answer"),
        ("redis://h/0?password=x", "redis://h/0"),
        ("redis://u:p@h/0?password=x, and more", "redis://h/0 and more"),
        ("redis://h/0?password=x@y", "redis://..."),
        ("redis://u:p?w@host", "redis://..."),
    ],
)
def test_the_login_of_a_url_is_left_out(text: str, told: str) -> None:
    assert without_login(text) == told


@pytest.mark.parametrize(
    ("store", "is_redis"),
    [
        ("redis://h", True),
        ("rediss://h", True),
        ("redis+cluster://h", True),
        ("rediss+cluster://h", True),
        ("redis.sqlite3", False),
        ("./redis:/x", False),
        ("http://h", False),
    ],
)
def test_a_store_is_redis_by_its_url(store: str, is_redis: bool) -> None:
    assert read(STORE=store).store_is_redis is is_redis


@pytest.mark.parametrize(
    ("host", "auto"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.1", True),
        ("cache.internal", True),
        ("localhost.example.org", True),
    ],
)
def test_keys_are_asked_for_by_itself_where_others_reach_the_address(host: str, auto: bool) -> None:
    asked = {access: read(HOST=host, ACCESS=access).asks_for_keys for access in ("auto", "open", "keys")}
    assert asked == {"auto": auto, "open": False, "keys": True}


def test_flags_overrule_the_environment_also_for_the_other_kind_of_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLCACHE_URL", "http://service")
    monkeypatch.setenv("TOOLCACHE_STORE", "environment.sqlite3")

    def chosen(*flags: str) -> tuple[str, str]:
        settings = _settings(parser().parse_args(["stats", *flags]))
        return settings.url, settings.store

    assert chosen() == ("http://service", "environment.sqlite3")
    assert chosen("--store", "flag.sqlite3") == ("", "flag.sqlite3")
    assert chosen("--url", "http://flag") == ("http://flag", "environment.sqlite3")
