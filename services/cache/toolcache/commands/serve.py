"""`toolcache serve`: the HTTP service on one store."""

from __future__ import annotations

import socket

import uvicorn

from toolcache.commands.failure import CommandFailed
from toolcache.commands.reach import service
from toolcache.settings import Settings
from toolcache.telemetry import log, say_aloud


def serve(settings: Settings) -> None:
    """Serve until interrupted. Raises CommandFailed when the address is taken, StoreUnavailable."""
    say_aloud()
    listener = _listener(settings.host, settings.port)
    app = service(settings)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=10)
    log("serving", url=f"http://{host}:{port}", store=str(settings.store))
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:  # uvicorn raises the interrupt again once it has stopped
        log("stopped")


def _listener(host: str, port: int) -> socket.socket:
    """Bound before anything heavy is loaded, so that a taken port is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # only now is the port taken: two programs may bind one with SO_REUSEADDR
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(f"cannot listen on {host}:{port} ({why}); choose another with --port") from error
    return listener
