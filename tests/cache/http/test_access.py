"""Who may do what: the whole matrix of keys, endpoints and namespaces; and how keys come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.http.service import PENDING, SPEC, batch, call, client_of, made
from toolcache.adapters.memory_store import MemoryStore
from toolcache.core.access import ApiKey, ApiRole, hash_of
from toolcache.core.access import made as made_key
from toolcache.core.ports import StoreUnavailable
from toolcache.http.keyring import EXTRA_READINGS, LIVE_S, RETRY_S, STALE_S, Keyring
from toolcache.http.problems import Refused

ADMIN_KEY = "correct horse battery staple"
LINE = {"domain": "NS", "environment": "e", "messages": []}

REQUESTS: dict[str, tuple[str, str, Any]] = {
    "look up": ("POST", "/v1/lookup", batch(call(), namespace="NS")),
    "explain": ("POST", "/v1/lookup?explain=1", batch(call(), namespace="NS")),
    "wait": ("POST", "/v1/lookup", batch(call(), namespace="NS", on_miss="wait")),
    "take a lease": ("POST", "/v1/lookup", batch(call(), namespace="NS", on_miss="lease")),
    "record": ("POST", "/v1/record", batch(call(result=PENDING), namespace="NS")),
    "extend": ("POST", "/v1/leases/l", {"namespace": "NS", "extend_s": 1}),
    "release": ("POST", "/v1/leases/l", {"namespace": "NS"}),
    "import": ("POST", "/v1/import?namespace=NS", LINE),
    "export": ("GET", "/v1/export?namespace=NS", None),
    "browse": ("GET", "/v1/entries?namespace=NS", None),
    "invalidate": ("DELETE", "/v1/entries?namespace=NS&all=1", None),
    "read policy": ("GET", "/v1/namespaces/NS", None),
    "set policy": ("PUT", "/v1/namespaces/NS", SPEC),
    "delete": ("DELETE", "/v1/namespaces/NS", None),
    "calibrate": ("POST", "/v1/calibrate?namespace=NS", None),
    "stats": ("GET", "/v1/stats?namespace=NS", None),
    "make a key": ("POST", "/v1/keys", {"name": "n", "role": "admin", "namespaces": ["NS"]}),
    "list keys": ("GET", "/v1/keys", None),
    "revoke a key": ("DELETE", "/v1/keys/nobody", None),
    "metrics": ("GET", "/metrics", None),
    "list": ("GET", "/v1/namespaces", None),
    "health": ("GET", "/healthz", None),
    "readiness": ("GET", "/readyz", None),
    "docs": ("GET", "/docs", None),
    "contract": ("GET", "/openapi.json", None),
}
IN_ITS_NAMESPACE = {
    #                no  read write admin
    "look up":      (401, 200, 200, 200),
    "explain":      (401, 200, 200, 200),
    "wait":         (401, 200, 200, 200),
    "take a lease": (401, 403, 200, 200),
    "record":       (401, 403, 200, 200),
    "extend":       (401, 403, 200, 200),
    "release":      (401, 403, 200, 200),
    "import":       (401, 403, 200, 200),
    "export":       (401, 200, 200, 200),
    "browse":       (401, 200, 200, 200),
    "invalidate":   (401, 403, 403, 200),
    "read policy":  (401, 200, 200, 200),
    "set policy":   (401, 403, 403, 204),
    "delete":       (401, 403, 403, 200),
    "calibrate":    (401, 403, 200, 200),
    "stats":        (401, 200, 200, 200),
}  # fmt: skip
"""Elsewhere each of them is a 404, whatever the role, and a 401 without a key."""
OF_THE_SERVICE = {
    #                no  one namespace    everywhere: read write admin
    "make a key":   (401, 403,             403, 403, 200),
    "list keys":    (401, 403,             403, 403, 200),
    "revoke a key": (401, 403,             403, 403, 404),
    "metrics":      (401, 403,             200, 200, 200),
    "list":         (401, 200,             200, 200, 200),
    "health":       (200, 200,             200, 200, 200),
    "readiness":    (200, 200,             200, 200, 200),
    "docs":         (200, 200,             200, 200, 200),
    "contract":     (200, 200,             200, 200, 200),
}  # fmt: skip
ROLES = (None, ApiRole.READ, ApiRole.WRITE, ApiRole.ADMIN)


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """A service that asks for keys, with the namespaces `shop` and `bank`."""

    client: httpx.AsyncClient
    store: MemoryStore

    async def key(self, role: ApiRole, *namespaces: str) -> str:
        """A new key's secret, put into the store behind the service's back."""
        key, secret = made_key("k", role, namespaces, now_s=0.0)
        await self.store.put_api_key(key)
        return secret

    async def ask(self, name: str, key: str | None, *, namespace: str) -> httpx.Response:
        method, path, body = REQUESTS[name]
        content = None if body is None else json.dumps(body).replace('"NS"', json.dumps(namespace)).encode()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.client.request(method, path.replace("NS", namespace), content=content, headers=headers)


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    store = MemoryStore()
    served = made(store, keyring=Keyring(store, admin_key_hash=hash_of(ADMIN_KEY)))
    async with client_of(served) as client:
        guarded = Guarded(client=client, store=store)
        for name in ("shop", "bank"):
            assert (await guarded.ask("set policy", ADMIN_KEY, namespace=name)).status_code == 204
        yield guarded


@pytest.mark.parametrize("role", ROLES, ids=lambda role: "no key" if role is None else role.name)
@pytest.mark.parametrize("name", IN_ITS_NAMESPACE)
async def test_a_key_may_do_in_its_namespace_what_its_role_says_and_elsewhere_nothing(
    guarded: Guarded, name: str, role: ApiRole | None
) -> None:
    own = None if role is None else await guarded.key(role, "shop")
    anywhere = None if role is None else await guarded.key(role, "*")
    expected = IN_ITS_NAMESPACE[name][ROLES.index(role)]
    for namespace in ("bank", "ghost"):
        reply = await guarded.ask(name, own, namespace=namespace)
        assert (reply.status_code, reply.json()["code"]) == (
            (401, "unauthenticated") if role is None else (404, "unknown_namespace")
        )
    assert (await guarded.ask(name, own, namespace="shop")).status_code == expected
    assert (await guarded.ask(name, anywhere, namespace="bank")).status_code == expected


@pytest.mark.parametrize("name", OF_THE_SERVICE)
async def test_what_concerns_the_whole_service_takes_a_key_that_holds_everywhere(guarded: Guarded, name: str) -> None:
    keys = (
        None,
        await guarded.key(ApiRole.ADMIN, "shop", "bank"),
        *[await guarded.key(role, "*") for role in ROLES if role is not None],
    )
    found = tuple([(await guarded.ask(name, key, namespace="shop")).status_code for key in keys])
    assert found == OF_THE_SERVICE[name]


def test_the_matrix_has_every_endpoint() -> None:
    from toolcache.http.endpoints import Endpoints

    described = {about.route for about, _ in Endpoints.__new__(Endpoints).described()}
    asked = {f"{method} {path.partition('?')[0]}" for method, path, _ in REQUESTS.values()}
    asked = {route.replace("/NS", "/{name}").replace("/nobody", "/{id}").replace("/l", "/l") for route in asked}
    assert {route.replace("/leases/{id}", "/leases/l") for route in described} <= asked
    assert set(REQUESTS) == {*IN_ITS_NAMESPACE, *OF_THE_SERVICE}


@pytest.mark.parametrize("role", ROLES[1:], ids=lambda role: role.name)
@pytest.mark.parametrize("name", IN_ITS_NAMESPACE)
async def test_another_tenants_namespace_and_one_that_does_not_exist_give_the_same_answer(
    guarded: Guarded, name: str, role: ApiRole
) -> None:
    """Byte for byte, but for the name asked."""
    key = await guarded.key(role, "shop")
    theirs, nobodys = [await guarded.ask(name, key, namespace=each) for each in ("bank", "gone")]
    assert theirs.content == nobodys.content.replace(b"gone", b"bank")
    assert theirs.headers == nobodys.headers
    assert b"shop" not in theirs.content


class WatchedStore(MemoryStore):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "asked":
            self.asked.add(name)
        return super().__getattribute__(name)


async def test_for_a_namespace_that_is_not_the_keys_the_store_is_not_even_asked() -> None:
    """Or the time it takes would tell whether it exists."""
    store = WatchedStore()
    served = made(store, keyring=Keyring(store))
    async with client_of(served) as client:
        guarded = Guarded(client=client, store=store)
        key = await guarded.key(ApiRole.ADMIN, "shop")
        store.asked.clear()
        for name in IN_ITS_NAMESPACE:
            assert (await guarded.ask(name, key, namespace="bank")).status_code == 404
        of_upkeep = {"remove_expired"}
        assert store.asked - of_upkeep == {"api_keys"}
        await guarded.ask("stats", key, namespace="shop")
        assert "known" in store.asked


async def test_a_tenants_own_missing_namespace_is_told_in_the_same_words(guarded: Guarded) -> None:
    key = await guarded.key(ApiRole.ADMIN, "mine")
    mine, theirs = [await guarded.ask("stats", key, namespace=each) for each in ("mine", "bank")]
    assert mine.content.replace(b"mine", b"bank") == theirs.content


async def test_a_key_sees_the_names_of_its_own_namespaces_only(guarded: Guarded) -> None:
    key = await guarded.key(ApiRole.READ, "shop", "ghost")
    assert (await guarded.ask("list", key, namespace="")).json() == {"namespaces": ["shop"]}
    assert (await guarded.ask("list", ADMIN_KEY, namespace="")).json() == {"namespaces": ["bank", "shop"]}


async def test_an_import_reaches_the_keys_own_namespaces_line_by_line(guarded: Guarded) -> None:
    """Neither trajectories nor an export's namespace line tell whether another tenant's namespace exists."""

    def lines(name: str) -> list[str]:
        message = {"role": "assistant", "content": "x"}
        exported = {"kind": "toolcache/namespace/1", "namespace": {"name": name, "tools": {}}}
        trajectory = {"domain": name, "environment": "e", "messages": [message]}
        return [json.dumps(exported, separators=(",", ":")), json.dumps(trajectory)]

    async def imported(role: ApiRole, name: str) -> Any:
        headers = {"authorization": f"Bearer {await guarded.key(role, 'shop')}"}
        content = "\n".join([*lines(name), *lines("shop")]).encode()
        return (await guarded.client.post("/v1/import", content=content, headers=headers)).json()

    for role in (ApiRole.WRITE, ApiRole.ADMIN):
        theirs, nobodys = await imported(role, "bank"), await imported(role, "gone")
        assert theirs == json.loads(json.dumps(nobodys).replace("gone", "bank"))
        assert (theirs["rejected"], theirs["namespaces"]) == ({"unknown_namespace": 2}, ["shop"])
    assert (await guarded.ask("stats", ADMIN_KEY, namespace="gone")).status_code == 404


async def test_keys_are_made_listed_without_secrets_and_revoked(guarded: Guarded) -> None:
    made = (await guarded.ask("make a key", ADMIN_KEY, namespace="shop")).json()
    assert made["secret"].startswith(f"tck_{made['id']}_")
    assert made | {"secret": "", "id": ""} == {
        "id": "",
        "name": "n",
        "role": "admin",
        "namespaces": ["shop"],
        "created_at_s": 1000.0,
        "secret": "",
    }
    assert (await guarded.ask("stats", made["secret"], namespace="shop")).status_code == 200
    listed = (await guarded.ask("list keys", ADMIN_KEY, namespace="")).json()["keys"]
    assert listed == [made | {"secret": ""}]
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert (await guarded.client.delete(f"/v1/keys/{made['id']}", headers=headers)).json() == {"removed": 1}
    assert (await guarded.ask("stats", made["secret"], namespace="shop")).status_code == 401


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer ", "Basic abc", "bearer tck_", "Bearer tck_a_b_c", "tck_a_b"])
async def test_what_is_no_key_opens_nothing_and_is_not_repeated(guarded: Guarded, shown: str) -> None:
    reply = await guarded.client.get("/v1/namespaces", headers={"authorization": shown})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


@given(st.text(min_size=1), st.sampled_from(["whole", "secret", "id"]))
def test_no_other_text_is_taken_for_a_key(noise: str, changed: str) -> None:
    async def ask() -> ApiKey | None:
        store = MemoryStore()
        key, secret = made_key("k", ApiRole.ADMIN, ["*"], now_s=0.0)
        await store.put_api_key(key)
        text = {"whole": noise, "secret": f"tck_{key.id}_{noise}", "id": f"tck_{noise}_{secret.split('_', 2)[2]}"}[
            changed
        ]
        headers = [(b"authorization", b"Bearer " + text.encode("utf-8", "surrogatepass"))]
        try:
            return await Keyring(store, admin_key_hash=hash_of(ADMIN_KEY)).caller(headers)
        except Refused as refused:
            assert noise not in refused.detail or len(noise) < 3
            return None

    assert asyncio.run(ask()) is None


# -- keys come and go --------------------------------------------------------------------------------------------------


class CountedStore(MemoryStore):
    """Counts how often the keys were read; can go away."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0
        self.is_away = False

    async def api_keys(self) -> list[ApiKey]:
        self.readings += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise StoreUnavailable("the store is away")
        return await super().api_keys()


class Time:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def counted() -> CountedStore:
    return CountedStore()


@pytest.fixture
def keyring(counted: CountedStore, time: Time) -> Keyring:
    return Keyring(counted, admin_key_hash=hash_of(ADMIN_KEY), clock=time)


async def is_valid(keyring: Keyring, text: str) -> bool:
    try:
        await keyring.caller([(b"authorization", b"Bearer " + text.encode())])
    except Refused:
        return False
    return True


async def put(store: MemoryStore) -> tuple[str, str]:
    """A new key's id and text."""
    key, text = made_key("k", ApiRole.READ, ["*"], now_s=0.0)
    await store.put_api_key(key)
    return key.id, text


async def test_a_key_made_by_another_replica_works_at_once(keyring: Keyring, counted: CountedStore) -> None:
    for _ in range(EXTRA_READINGS):
        _, text = await put(counted)
        assert await is_valid(keyring, text)


async def test_a_key_revoked_by_another_replica_stops_working_within_seconds(
    keyring: Keyring, counted: CountedStore, time: Time
) -> None:
    key_id, text = await put(counted)
    assert await is_valid(keyring, text)
    await counted.delete_api_key(key_id)
    time.now_s = LIVE_S + 0.1
    assert not await is_valid(keyring, text)


async def test_known_keys_cost_one_reading_every_few_seconds(
    keyring: Keyring, counted: CountedStore, time: Time
) -> None:
    _, text = await put(counted)
    for tenth in range(100):
        time.now_s = tenth / 10
        assert await is_valid(keyring, text)
    assert counted.readings == 4  # at 0, 3.1, 6.2 and 9.3 s


async def test_made_up_ids_cannot_keep_the_store_busy(keyring: Keyring, counted: CountedStore, time: Time) -> None:
    _, text = await put(counted)
    for n in range(1_000):
        assert not await is_valid(keyring, f"tck_{n}_x")
    assert counted.readings <= EXTRA_READINGS + 1
    assert await is_valid(keyring, text)
    _, later = await put(counted)
    time.now_s = 1.0
    assert await is_valid(keyring, later)


async def test_the_key_of_the_settings_needs_no_store(keyring: Keyring, counted: CountedStore) -> None:
    counted.is_away = True
    assert await is_valid(keyring, ADMIN_KEY)
    assert counted.readings == 0


async def test_keys_are_believed_for_a_while_when_the_store_is_away_and_unknown_ones_are_not_called_invalid(
    keyring: Keyring, counted: CountedStore, time: Time
) -> None:
    _, text = await put(counted)
    assert await is_valid(keyring, text)
    counted.is_away, time.now_s = True, STALE_S
    assert await is_valid(keyring, text)
    with pytest.raises(StoreUnavailable, match="the store is away"):
        await is_valid(keyring, "tck_unknown_x")
    time.now_s = STALE_S + 1.0
    with pytest.raises(StoreUnavailable):
        await is_valid(keyring, text)
    counted.is_away, time.now_s = False, STALE_S + 1.1 + RETRY_S
    assert await is_valid(keyring, text)


async def test_many_who_come_at_once_share_a_reading(keyring: Keyring, counted: CountedStore) -> None:
    """Also with a key that is new: a hundred rollouts start together."""
    for _ in range(2):
        _, text = await put(counted)
        before = counted.readings
        assert all(await asyncio.gather(*(is_valid(keyring, text) for _ in range(100))))
        assert counted.readings - before <= 2
