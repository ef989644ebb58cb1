"""Who may do what: API keys with a role, in some namespaces.

A key reads `tck_<id>_<secret>`. Only the secret's SHA-256 is kept: it is 32 random bytes, so nothing slower is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

EVERYWHERE = "*"
_PREFIX = "tck"


class ApiRole(IntEnum):
    """A role may do all that a lower one may."""

    READ = 1
    """Look up, browse, export."""
    WRITE = 2
    """Record, import, take leases; calibrate."""
    ADMIN = 3
    """Namespaces and their policies, invalidation; with "*" also keys and metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    id: str
    name: str
    role: ApiRole
    namespaces: tuple[str, ...]
    secret_hash: str
    """SHA-256 of the secret, hex."""
    created_at_s: float

    def may(self, role: ApiRole, namespace: str | None) -> bool:
        """Whether it holds the role in the namespace; None asks for the whole service.

        >>> key = ApiKey(id="1", name="n", role=ApiRole.WRITE, namespaces=("shop",), secret_hash="", created_at_s=0)
        >>> key.may(ApiRole.READ, "shop"), key.may(ApiRole.ADMIN, "shop"), key.may(ApiRole.READ, None)
        (True, False, False)
        """
        is_there = EVERYWHERE in self.namespaces or (namespace is not None and namespace in self.namespaces)
        return is_there and self.role >= role


def made(name: str, role: ApiRole, namespaces: Sequence[str], *, now_s: float) -> tuple[ApiKey, str]:
    """A new key, and the text its owner sends; the text is known to nobody afterwards."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    key = ApiKey(
        id=key_id,
        name=name,
        role=role,
        namespaces=tuple(namespaces),
        secret_hash=hash_of(secret),
        created_at_s=now_s,
    )
    return key, f"{_PREFIX}_{key_id}_{secret}"


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def owner(text: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The key that this text proves, by its id; None if it proves none. Takes the same time for every wrong secret."""
    prefix, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    key = keys.get(key_id)
    if prefix != _PREFIX or key is None or not hmac.compare_digest(hash_of(secret), key.secret_hash):
        return None
    return key
