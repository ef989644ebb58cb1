"""SDK of the tool-result cache service.

    with CacheClient("http://127.0.0.1:8765") as cache:
        answer, = cache.lookup("retail", [LookupItem(tool=..., arguments=..., environment=...)])

Imports httpx and msgspec, nothing heavier.
"""

from toolcache_client.client import DEFAULT_URL, AsyncCacheClient, CacheClient
from toolcache_client.errors import CacheError, CacheRefused, CacheReplyMalformed, CacheUnavailable, RecordRefused

__all__ = [
    "DEFAULT_URL",
    "AsyncCacheClient",
    "CacheClient",
    "CacheError",
    "CacheRefused",
    "CacheReplyMalformed",
    "CacheUnavailable",
    "RecordRefused",
]
