"""The commands, called as a person would, on small files worked out by hand."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolcache.adapters import minilm_embedder
from toolcache.commands import audit
from toolcache.main import main

Run = Callable[..., tuple[int, str, str]]


def tool(name: str, **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"order_id": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": schema}, **more}


TOOLS = [tool("get_order", effect="read"), tool("cancel_order", effect="write")]


def run_of(model: str, *calls: tuple[str, str, str], domain: str = "shop", environment: str = "shop@1") -> str:
    messages: list[dict[str, Any]] = []
    for n, (name, order, content) in enumerate(calls):
        function = {"name": name, "arguments": json.dumps({"order_id": order})}
        messages.append({"role": "assistant", "tool_calls": [{"id": str(n), "function": function}]})
        messages.append({"role": "tool", "tool_call_id": str(n), "content": content})
    record = {"uid": model, "domain": domain, "environment": environment, "model": model, "messages": messages}
    return json.dumps(record) + "\n"


GET, CANCEL = "get_order", "cancel_order"
SEEDS = run_of("seed", (GET, "#W1", "pending"), (CANCEL, "#W1", "done"), (GET, "#W1", "cancelled")) + run_of(
    "seed", (GET, "#W2", "lost")
)
REPLAYED = (
    run_of("new", (GET, "#W1", "pending"), (CANCEL, "#W1", "done"), (GET, "#W1", "cancelled"), (GET, "#W3", "?"))
    + run_of("new", (GET, "#W2", "found"), (CANCEL, "#W9", "done"), (GET, "#W1", "pending"))
    + run_of("newer", (GET, "#W1", "pending"))
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*words) -> (exit status, output, error output), in a folder of its own and without the heavy embedder."""
    from toolcache.adapters.hash_embedder import HashEmbedder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minilm_embedder, "MiniLmEmbedder", HashEmbedder)
    monkeypatch.setattr(audit, "MiniLmEmbedder", HashEmbedder)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("HOST", "PORT", "STORE", "URL", "MAX_BODY_BYTES", "MAX_ITEMS"):
        monkeypatch.delenv(f"TOOLCACHE_{name}", raising=False)

    def _run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        said = capsys.readouterr()
        return status, said.out, said.err

    return _run


def answer(run: Run, order: str, *more: str, name: str = GET, namespace: str = "shop") -> dict[str, Any]:
    arguments = json.dumps({"order_id": order})
    status, out, _ = run(
        "lookup", "--namespace", namespace, "--tool", name, "--arguments", arguments, "--environment", "shop@1", *more
    )
    assert status == 0
    return json.loads(out)


def test_a_file_is_imported_with_the_tools_beside_it_and_can_be_looked_up(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "runs_tools.json").write_text(json.dumps({"shop": TOOLS}))
    status, out, err = run("import", "runs.jsonl")
    assert (status, err) == (0, "")
    assert "2 trajectories, 4 calls into toolcache.sqlite3: 4 stored" in out
    before = answer(run, "#W1")
    assert (before["tier"], before["result"]["content"]) == ("exact", "pending")
    write = answer(run, "#W1", name=CANCEL)
    after = answer(run, "#W1", "--state", write["state_after"])
    assert after["result"]["content"] == "cancelled"
    assert answer(run, "#W9")["reason"] == "not_recorded"
    again = run("import", "runs.jsonl")
    assert "4 known" in again[1]


def test_compressed_recordings_with_tools_given_go_into_the_namespace_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl.gz").write_bytes(gzip.compress(SEEDS.encode()))
    (tmp_path / "t.json").write_text(json.dumps(TOOLS))
    status, out, _ = run("import", "runs.jsonl.gz", "--tools", "t.json", "--namespace", "mine", "--store", "s.db")
    assert (status, "4 stored" in out, (tmp_path / "s.db").exists()) == (0, True, True)
    assert answer(run, "#W2", "--store", "s.db", namespace="mine")["result"]["content"] == "lost"


@pytest.mark.parametrize(
    ("document", "words", "told"),
    [
        (None, (), "no tool schemas beside runs.jsonl (looked for runs_tools.json, tools.json)"),
        (TOOLS, (), "name it with --namespace"),
        ({"shop": TOOLS, "bank": TOOLS}, ("--namespace", "n"), "domains bank, shop: choose one with --domain"),
        ({"shop": TOOLS, "bank": TOOLS}, ("--domain", "shpo"), "no domain 'shpo' (it has: bank, shop)"),
        ({"shop": TOOLS}, ("--namespace", "a b"), "'a b' is no namespace name"),
    ],
)
def test_an_import_that_cannot_be_done_says_so_in_one_line(
    run: Run, tmp_path: Path, document: Any, words: tuple[str, ...], told: str
) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    if document is not None:
        (tmp_path / "tools.json").write_text(json.dumps(document))
    status, _, err = run("import", "runs.jsonl", *words)
    assert status == 1
    assert told in err
    assert (err.count("\n"), err.startswith("toolcache: ")) == (1, True)


def test_a_missing_file_is_told(run: Run) -> None:
    status, _, err = run("import", "none.jsonl")
    assert (status, "none.jsonl: cannot be read" in err) == (1, True)


def test_only_the_chosen_domain_is_imported(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS + run_of("seed", (GET, "#W5", "elsewhere"), domain="bank") + "{cut off")
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS, "bank": TOOLS}))
    status, out, _ = run("import", "runs.jsonl", "--domain", "shop", "--namespace", "mine")
    assert (status, "2 trajectories, 4 calls" in out, "line 4: invalid_line" in out) == (0, True, True)
    assert answer(run, "#W5", namespace="mine")["tier"] == "miss"


def test_unannotated_tools_are_named_because_they_cost_hits(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "tools.json").write_text(json.dumps([tool(GET), tool(CANCEL, effect="write")]))
    status, out, _ = run("import", "runs.jsonl", "--namespace", "mine")
    assert status == 0
    assert "no effect given for get_order; taken for writes" in " ".join(out.split())


def test_of_a_cut_off_file_what_can_be_read_is_stored_and_the_exit_status_says_so(run: Run, tmp_path: Path) -> None:
    many = "".join(run_of(f"seed {n}", (GET, f"#W{n}", f"order {n * 7919 % 1000}")) for n in range(2000))
    whole = gzip.compress(many.encode())
    (tmp_path / "runs.jsonl.gz").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    status, out, err = run("import", "runs.jsonl.gz")
    assert status == 1
    assert "runs.jsonl.gz: unreadable after line" in err
    assert "what came before is stored" in err
    stored = int(err.split("after line ")[1].split(" ")[0])
    assert 500 < stored < 2000
    assert f"{stored} trajectories" in out
    assert answer(run, f"#W{stored - 1}")["tier"] == "exact"


def test_importing_again_keeps_the_policy_that_stands(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    run("import", "runs.jsonl")
    import asyncio
    from dataclasses import replace

    from toolcache.adapters.sqlite_store import SqliteStore
    from toolcache.core.tools import Tier

    async def change(value: float) -> float:
        store = SqliteStore.open(tmp_path / "toolcache.sqlite3")
        shop = (await store.namespaces())["shop"]
        await store.put_namespace(replace(shop, tiers=frozenset({Tier.EXACT}), similar_threshold=value))
        await store.close()
        return shop.similar_threshold

    asyncio.run(change(0.95))
    run("import", "runs.jsonl")
    assert asyncio.run(change(0.5)) == 0.95


def test_stats_tell_the_numbers_as_json_and_as_a_table(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("stats")
    assert (status, "no namespaces yet" in out) == (0, True)
    (tmp_path / "runs.jsonl").write_text(SEEDS + run_of("seed", (GET, "#W2", "found")))
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    run("import", "runs.jsonl")
    (stats,) = json.loads(run("stats", "--json")[1])
    assert (stats["namespace"], stats["entries"], stats["environments"]) == ("shop", 5, 1)
    tools = {each["name"]: each for each in stats["tools"]}
    assert (tools[GET]["entries"], tools[GET]["conflicts"], tools[GET]["effect"]) == (4, 1, "read")
    assert tools[GET]["trust"]["recorded"] == 1 / 3
    assert (tools[CANCEL]["entries"], tools[CANCEL]["trust"]["recorded"]) == (1, 1.0)
    table = run("stats", "--namespace", "shop")[1]
    assert "shop: 5 entries from 1 environments" in table
    assert "0.333" in table


def test_an_unknown_namespace_is_told_with_those_that_exist(run: Run) -> None:
    status, _, err = run("stats", "--namespace", "shpo")
    assert (status, "no namespace 'shpo' (there are: none yet)" in err) == (1, True)


@pytest.mark.parametrize(("arguments", "told"), [("{", "--arguments is not JSON"), ("[1]", "not list")])
def test_arguments_that_are_no_object_are_told(run: Run, arguments: str, told: str) -> None:
    words = ("--namespace", "n", "--tool", "t", "--environment", "e", "--arguments", arguments)
    status, _, err = run("lookup", *words)
    assert (status, told in err) == (1, True)


def test_arguments_that_json_cannot_say_are_told(run: Run) -> None:
    words = ("--namespace", "n", "--tool", "t", "--environment", "e", "--arguments", '{"x": NaN}')
    status, _, err = run("lookup", *words)
    assert (status, "NaN" in err) == (1, True)


def audited(run: Run, folder: Path, models: str, *words: str) -> dict[str, Any]:
    (folder / "runs.jsonl").write_text(SEEDS + REPLAYED)
    (folder / "t.json").write_text(json.dumps({"shop": TOOLS}))
    status, _, err = run(
        "audit",
        "--recordings",
        "runs.jsonl",
        "--tools",
        "t.json",
        "--replay-models",
        models,
        "--json",
        "o.json",
        *words,
    )
    assert (status, err) == (0, "")
    return json.loads((folder / "o.json").read_text())


def test_an_audit_counts_right_wrong_missed_and_contaminated(run: Run, tmp_path: Path) -> None:
    found = audited(run, tmp_path, "new,newer")
    # Run 1: 3 right, 1 miss. Run 2: 1 wrong (lost, not found), a missed write, a miss after it. Run 3: 1 right.
    assert found["rollouts"] == 3
    assert found["calls"] == 8
    assert found["contaminated_rollouts"] == 1
    assert found["wrong_per_1000"] == 125.0
    assert found["tiers"]["exact"] == {
        "served": 5,
        "right": 4,
        "share": 0.625,
        "precision": 0.8,
        "mean_trust": 1.0,
    }
    assert found["tiers"]["similar"]["served"] == 0
    assert found["misses"] == {"not_recorded": 2, "write": 1}
    assert found["tools"][GET]["exact"] == {
        "served": 4,
        "right": 3,
        "share": 4 / 6,
        "precision": 0.75,
        "mean_trust": 1.0,
    }


def test_models_that_are_not_replayed_seed_the_cache(run: Run, tmp_path: Path) -> None:
    found = audited(run, tmp_path, "newer")
    assert (found["rollouts"], found["calls"], found["tiers"]["exact"]["right"]) == (1, 1, 1)


def test_an_audit_can_allow_guesses_and_they_are_counted_apart(run: Run, tmp_path: Path) -> None:
    found = audited(run, tmp_path, "new,newer", "--tiers", "exact,approximate")
    guesses = found["tiers"]["approximate"]
    # #W3 gets the nearest order's result, and #W1 after the unknown write what it was in the initial state.
    assert guesses["served"] == 2
    assert guesses["mean_trust"] < 0.5
    assert found["misses"] == {"write": 1}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--replay-models", "nobody"), "no runs of 'nobody' (models: new, newer, seed)"),
        (("--replay-models", "new", "--domain", "bank"), "no domain 'bank' (it has: shop)"),
        (("--replay-models", "new", "--json", "no/such/folder.json"), "no/such/folder.json: cannot be written"),
        (("--replay-models", "new", "--tools", "none.json"), "none.json: cannot be read"),
    ],
)
def test_an_audit_that_cannot_be_done_says_so(run: Run, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS + REPLAYED)
    (tmp_path / "t.json").write_text(json.dumps({"shop": TOOLS}))
    status, _, err = run("audit", "--recordings", "runs.jsonl", "--tools", "t.json", *words)
    assert (status, told in err, err.count("\n")) == (1, True, 1)


def test_an_unknown_tier_is_told(run: Run) -> None:
    with pytest.raises(SystemExit):
        run("audit", "--recordings", "r", "--tools", "t", "--replay-models", "m", "--tiers", "exakt")


def test_a_taken_port_is_told_in_one_line(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = run("serve", "--port", str(port))
    assert status == 1
    assert err == f"toolcache: cannot listen on 127.0.0.1:{port} (Address already in use); choose another with --port\n"


@pytest.mark.parametrize(
    ("words", "told"), [(("--port", "99999"), "99999"), (("--host", "no.such.host.invalid"), "invalid")]
)
def test_an_address_that_cannot_be_listened_on_is_told(run: Run, words: tuple[str, ...], told: str) -> None:
    status, _, err = run("serve", *words)
    assert (status, told in err, err.count("\n")) == (1, True, 1)


def test_a_store_that_cannot_be_opened_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    status, _, err = run("stats", "--store", "file/c.sqlite3")
    assert (status, "file/c.sqlite3: its folder cannot be made" in err, err.count("\n")) == (1, True, 1)


def test_a_service_that_is_away_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolcache_client.client.RETRY_PAUSES_S", (0.0,))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    status, _, err = run("stats", "--url", url)
    assert (status, url in err, "toolcache serve" in err) == (1, True, True)


def test_a_slip_in_the_environment_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLCACHE_PROT", "1")
    status, _, err = run("stats")
    assert (status, "unknown setting TOOLCACHE_PROT" in err) == (1, True)


def test_a_served_store_answers_over_http_until_it_is_interrupted(tmp_path: Path) -> None:
    import signal

    import httpx

    words = [sys.executable, "-m", "toolcache.main", "serve", "--port", "0", "--store", str(tmp_path / "c.sqlite3")]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    event = json.loads(server.stderr.readline())
    try:
        assert event["event"] == "serving"
        assert httpx.get(f"{event['url']}/readyz", timeout=60).json() == {"status": "ready"}
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=30)[1]
    assert [json.loads(line)["event"] for line in rest.splitlines() if line.startswith("{")] == ["stopped"]
    assert server.returncode == 130


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import contextlib, sys, toolcache.main\n"
        "with contextlib.suppress(SystemExit): toolcache.main.main(['--help'])\n"
        "sys.stderr.write(' '.join(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "import" in said.stdout
    names = {name.partition(".")[0] for name in said.stderr.split()}
    assert names & {"torch", "numpy", "faiss", "fastapi", "uvicorn", "httpx", "msgspec", "jsonschema", "rich"} == set()
