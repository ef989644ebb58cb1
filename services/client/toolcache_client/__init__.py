"""SDK of the tool-result cache service.

    with CacheClient("http://127.0.0.1:8765") as cache:
        item = LookupItem(tool=..., arguments=..., environment=...)
        answer, = cache.lookup("retail", [item])
        # or, executing what is missing once for all who ask:
        resolved = cache.resolve("retail", item, lambda: ToolResult(content=...))

Imports httpx, httptools and msgspec, nothing heavier.
"""

from toolcache_client.client import DEFAULT_URL, AsyncCacheClient, CacheClient
from toolcache_client.errors import (
    CacheBusy,
    CacheDenied,
    CacheError,
    CacheRefused,
    CacheReplyMalformed,
    CacheUnavailable,
    RecordRefused,
)
from toolcache_client.resolve import Resolved

__all__ = [
    "DEFAULT_URL",
    "AsyncCacheClient",
    "CacheBusy",
    "CacheClient",
    "CacheDenied",
    "CacheError",
    "CacheRefused",
    "CacheReplyMalformed",
    "CacheUnavailable",
    "RecordRefused",
    "Resolved",
]
