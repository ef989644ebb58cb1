"""What the service is measured against: FastAPI's smallest endpoint, which answers a constant."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def constant() -> dict[str, bool]:
    """The same bytes every time."""
    return {"ok": True}
