"""Who asks: the API key that a request's Authorization header proves.

Keys are read from the store every few seconds, so that one revoked anywhere stops working everywhere, and at once when
an id comes that is not known, so that one made anywhere works everywhere.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Callable, Iterable

from toolcache.core.access import EVERYWHERE, ApiKey, ApiRole, hash_of, owner
from toolcache.core.ports import Store, StoreUnavailable
from toolcache.http.problems import Code, Refused

ADMIN = ApiKey(id="admin", name="admin", role=ApiRole.ADMIN, namespaces=(EVERYWHERE,), secret_hash="", created_at_s=0.0)
"""Who shows the key of the settings."""
LIVE_S = 3.0
"""Seconds between two readings of the keys: so long a revoked one may still work."""
RETRY_S = 0.5
"""The same while the store is away."""
STALE_S = 60.0
"""Seconds for which keys are believed while the store is away. Nothing can be read or stored meanwhile, but the numbers
of the outage can be asked for."""
EXTRA_READINGS = 10
"""Readings for the sake of unknown ids that may follow each other at once..."""
EXTRA_READINGS_PER_S = 2.0
"""...and how many more come to be allowed a second: who makes up ids must not keep the store busy."""


class Keyring:
    """The keys of one store, and the key of the settings."""

    def __init__(self, store: Store, *, admin_key_hash: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        """`admin_key_hash` is access.hash_of the key that may do everything; "" for none."""
        self._store = store
        self._admin_key_hash = admin_key_hash
        self._clock = clock
        self._keys: dict[str, ApiKey] = {}
        self._begun = 0
        self._failure: StoreUnavailable | None = None
        self._read_at_s = -math.inf
        self._tried_at_s = -math.inf
        self._lock = asyncio.Lock()
        self._extra = float(EXTRA_READINGS)
        self._extra_at_s = clock()

    async def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """Raises Refused, StoreUnavailable."""
        text = _shown(headers)
        if text.startswith("tck_"):
            key = await self._stored(text)
            if key is not None:
                return key
        if self._admin_key_hash and hmac.compare_digest(hash_of(text), self._admin_key_hash):
            return ADMIN
        raise Refused(
            Code.UNAUTHENTICATED, "this key is not valid, or no longer; an admin makes keys with POST /v1/keys"
        )

    def made(self, key: ApiKey) -> None:
        """A key that is in the store from now on."""
        self._keys[key.id] = key

    def revoked(self, key_id: str) -> None:
        self._keys.pop(key_id, None)

    async def _stored(self, text: str) -> ApiKey | None:
        await self._read_if_due()
        is_known = text.split("_")[1] in self._keys
        if not is_known:
            await self._read_anew()
            is_known = text.split("_")[1] in self._keys
        if self._failure is not None and (not is_known or self._clock() - self._read_at_s > STALE_S):
            raise StoreUnavailable(f"API keys cannot be read: {self._failure}") from self._failure
        return owner(text, self._keys)

    def _may_read_extra(self) -> bool:
        now_s = self._clock()
        self._extra = min(EXTRA_READINGS, self._extra + (now_s - self._extra_at_s) * EXTRA_READINGS_PER_S)
        self._extra_at_s = now_s
        if self._extra < 1.0:
            return False
        self._extra -= 1.0
        return True

    def _is_due(self) -> bool:
        return self._clock() - self._tried_at_s > (LIVE_S if self._failure is None else RETRY_S)

    async def _read_if_due(self) -> None:
        if self._is_due():
            async with self._lock:
                if self._is_due():  # nobody else has read meanwhile
                    await self._read()

    async def _read_anew(self) -> None:
        """See every key that was made before this was called, unless that was asked too often."""
        begun = self._begun
        async with self._lock:
            if self._begun == begun and self._may_read_extra():  # a reading that began since is as good
                await self._read()

    async def _read(self) -> None:
        self._begun += 1
        began_s = self._clock()
        try:
            keys = await self._store.api_keys()
        except StoreUnavailable as error:
            self._failure = error
        else:
            self._failure = None
            self._keys = {key.id: key for key in keys}
            self._read_at_s = began_s
        self._tried_at_s = self._clock()


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """What stands after `Bearer` in the Authorization header. Raises Refused."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, text = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return text.strip().decode("utf-8", "replace")
    raise Refused(
        Code.UNAUTHENTICATED, "show a key: `Authorization: Bearer tck_...` (TOOLCACHE_API_KEY for the commands)"
    )
