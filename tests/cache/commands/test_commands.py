"""The commands, called as a person would, on small files worked out by hand."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cache.http.service import made, serving
from toolcache.adapters import minilm_embedder
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.adapters.memory_store import MemoryStore
from toolcache.adapters.sqlite_store import SqliteStore
from toolcache.commands import audit, calibrate, import_
from toolcache.core.access import hash_of
from toolcache.core.tools import Namespace, Tier
from toolcache.http.keyring import Keyring
from toolcache.main import main
from toolcache_client import AsyncCacheClient
from toolcache_client.messages import Evidence, ImportReport, NamespaceSpec, ToolSpec, ToolStats

T = TypeVar("T")
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


class HashEncoder:
    """An Encoder without a model."""

    version = HashEmbedder.version

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = asyncio.run(HashEmbedder().embed(texts, tenant=""))
        return np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(texts), -1)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*words) -> (exit status, output, error output), in a folder of its own and without the heavy embedder."""
    monkeypatch.chdir(tmp_path)
    for module in (minilm_embedder, audit):
        monkeypatch.setattr(module, "best_encoder", lambda folder=None: HashEncoder())
    monkeypatch.setenv("COLUMNS", "200")
    for name in list(os.environ):
        if name.startswith("TOOLCACHE_"):
            monkeypatch.delenv(name)

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
    found: dict[str, Any] = json.loads(out)
    return found


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


def test_a_long_file_is_sent_in_pieces_and_its_lines_keep_their_numbers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []
    send = AsyncCacheClient.import_lines

    async def counted(client: AsyncCacheClient, lines: Sequence[bytes], **more: Any) -> ImportReport:
        pieces.append(len(lines))
        return await send(client, lines, **more)

    monkeypatch.setattr(AsyncCacheClient, "import_lines", counted)
    monkeypatch.setattr(import_, "PIECE_BYTES", 2 * len(run_of("m0", (GET, "#W0", "x"))))
    (tmp_path / "runs.jsonl").write_text("".join(run_of(f"m{n}", (GET, f"#W{n}", "x")) for n in range(5)) + "{cut off")
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    out = run("import", "runs.jsonl")[1]
    assert pieces == [2, 2, 2]
    assert ("5 trajectories" in out, "line 6: invalid_line" in out) == (True, True)


def test_a_flag_wins_over_the_environment_also_where_it_names_the_other_kind_of_place(
    shop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLCACHE_URL", "http://127.0.0.1:1")
    assert answer(shop, "#W1", "--store", "toolcache.sqlite3")["tier"] == "exact"


def test_importing_again_keeps_the_policy_that_stands(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    run("import", "runs.jsonl")
    before = policy_of("shop", tmp_path)
    changed = replace(before, tiers=frozenset({Tier.EXACT}), similar_threshold=0.95, max_bytes=10**6, shadow_share=0.5)
    with_store(tmp_path, lambda store: store.put_namespace(changed))
    run("import", "runs.jsonl")
    assert policy_of("shop", tmp_path) == changed
    run("namespaces", "put", "tools.json")
    assert policy_of("shop", tmp_path) == changed
    (tmp_path / "tools.json").write_text(json.dumps({"shop": {"tools": TOOLS, "max_bytes": 5, "tiers": ["similar"]}}))
    run("namespaces", "put", "tools.json")
    assert policy_of("shop", tmp_path) == replace(changed, max_bytes=5, tiers=frozenset({Tier.SIMILAR}))


def with_store(folder: Path, use: Callable[[SqliteStore], Awaitable[T]]) -> T:
    """What `use` finds in the store that the commands use."""

    async def once() -> T:
        store = SqliteStore.open(folder / "toolcache.sqlite3")
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(once())


def policy_of(name: str, folder: Path) -> Namespace:
    known = with_store(folder, lambda store: store.known(name))
    assert known is not None
    return known.namespace


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


def test_an_unknown_namespace_is_told(run: Run) -> None:
    status, _, err = run("stats", "--namespace", "shpo")
    assert (status, "no namespace 'shpo'" in err, err.count("\n")) == (1, True, 1)


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
    found: dict[str, Any] = json.loads((folder / "o.json").read_text())
    return found


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


def test_masks_are_tried_against_the_policy_without_them(run: Run, tmp_path: Path) -> None:
    found = audited(run, tmp_path, "new", "--mask", f"{GET}.order_id=W[0-9]+")
    assert found["masks"] == [f"{GET}.order_id=W[0-9]+"]
    assert found["without_masks"]["calls"] == found["calls"] == 7
    assert found["misses"]["not_recorded"] < found["without_masks"]["misses"]["not_recorded"]


def test_a_share_of_all_runs_is_replayed_where_no_model_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text("".join(run_of(f"m{n}", (GET, f"#W{n}", "x")) for n in range(200)))
    (tmp_path / "t.json").write_text(json.dumps({"shop": TOOLS}))
    words = ("--recordings", "runs.jsonl", "--tools", "t.json", "--replay-share", "0.25", "--json", "o.json")
    assert run("audit", *words)[0] == 0
    rollouts = json.loads((tmp_path / "o.json").read_text())["rollouts"]
    assert 25 <= rollouts <= 75


@pytest.mark.parametrize("words", [("--replay-share", "0"), ("--replay-share", "1"), ("--replay-share", "x"), ()])
def test_nothing_to_replay_is_told(run: Run, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        run("audit", "--recordings", "r", "--tools", "t", *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--replay-models", "new", "--mask", "get.id"), "--mask get.id: no tool 'get' with an argument 'id'"),
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
    # Tests that run in the background of a shell are deaf to SIGINT, and what they start would be so, too.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
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


# -- explain and calibrate ---------------------------------------------------------------------------------------------


@pytest.fixture
def shop(run: Run, tmp_path: Path) -> Run:
    """`run`, after the seeds were imported: 4 entries of the namespace shop."""
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    assert run("import", "runs.jsonl")[0] == 0
    return run


def asked(order: str, name: str = GET) -> tuple[str, ...]:
    arguments = json.dumps({"order_id": order})
    return ("--namespace", "shop", "--tool", name, "--arguments", arguments, "--environment", "shop@1")


def test_an_explanation_tells_what_decided_the_answer(shop: Run) -> None:
    status, out, err = shop("explain", *asked("#W1"))
    assert (status, err) == (0, "")
    facts = {line[:10].strip(): line[11:] for line in out.splitlines()}
    assert facts["answer"] == "exact, trust 1.000, because recorded"
    assert (facts["result"], facts["call"]) == ("pending", '{"order_id":"#W1"}')
    assert facts["roles"] == "order_id identity"
    assert facts["threshold"] == "similarity 0.8, proven precision (floor) 0.9"
    assert facts["steps"].startswith("1. exact")


def test_the_explanation_of_a_miss_names_what_was_tried(shop: Run) -> None:
    out = shop("explain", *asked("#W9"))[1]
    assert "answer     miss, trust 0.000, because not_recorded" in out
    assert "exact: nothing is recorded under" in out
    told = json.loads(shop("explain", "--json", *asked("#W9"))[1])
    assert told["explanation"]["canonical"] == '{"order_id":"#W9"}'
    assert len(told["explanation"]["steps"]) == out.count(". exact") + out.count(". similar")


def test_calibrating_shows_what_each_tool_s_recordings_prove(shop: Run) -> None:
    status, out, _ = shop("calibrate", "--namespace", "shop")
    assert (status, "shop: what 4 entries prove" in out) == (0, True)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [  # one pair, the same order before and after its cancellation, differs: trust (0 + 1) / (1 + 5)
        [GET, "other_state", "0 / 1", "-", "-", "0.167", "off: not a tier of the namespace"],
        ["", "recorded", "0 / 0", "-", "-", "1.000", "on"],
        [CANCEL, "recorded", "0 / 0", "-", "-", "1.000", "on"],
    ]


SEARCH = ToolSpec(name="search", effect="read", similar_floor=0.9)


def rows(spec: NamespaceSpec, **evidence: tuple[int, int, float]) -> list[tuple[str, ...]]:
    """The table's rows of a tool with this evidence: (right, compared, proven) by kind of answer."""
    told = ToolStats(
        name="search",
        effect="read",
        entries=0,
        conflicts=0,
        answers={},
        roles={},
        trust=dict.fromkeys(evidence, 0.5),
        evidence={kind: Evidence(right=n, compared=of, proven=proven) for kind, (n, of, proven) in evidence.items()},
    )
    return list(calibrate._rows(told, SEARCH, spec))


def test_similar_answers_are_on_from_the_floor_on_and_guesses_where_the_namespace_wants_them() -> None:
    spec = NamespaceSpec(tools=(SEARCH,))
    assert rows(spec, irrelevant=(35, 35, 0.9)) == [
        ("search", "irrelevant", "35 / 35", "0.900", "0.9", "0.500", "on"),
    ]
    assert rows(spec, irrelevant=(34, 34, 0.898))[0][3:] == ("0.898", "0.9", "0.500", "off: not proven")
    assert rows(spec, nearest=(9, 9, 0.7))[0][3:] == ("-", "-", "0.500", "off: not a tier of the namespace")
    guessing = NamespaceSpec(tools=(SEARCH,), tiers=("exact", "approximate"))
    assert [row[-1] for row in rows(guessing, nearest=(1, 9, 0.0), irrelevant=(99, 99, 0.96))] == [
        "on",
        "off: not a tier of the namespace",
    ]


# -- export ------------------------------------------------------------------------------------------------------------


def test_an_export_gives_the_same_answers_elsewhere_whatever_it_is_written_to(shop: Run, tmp_path: Path) -> None:
    status, printed, err = shop("export", "--namespace", "shop")
    assert (status, "4 entries of shop to standard output" in err) == (0, True)
    assert shop("export", "--namespace", "shop", "--out", "shop.ndjson.gz")[0] == 0
    assert gzip.decompress((tmp_path / "shop.ndjson.gz").read_bytes()).decode() == printed
    assert len(printed.splitlines()) == 5

    before = [answer(shop, order) for order in ("#W1", "#W2", "#W9")]
    status, out, _ = shop("import", "shop.ndjson.gz", "--store", "other.sqlite3")
    assert (status, "4 calls into other.sqlite3: 4 stored" in out) == (0, True)
    assert [answer(shop, order, "--store", "other.sqlite3") for order in ("#W1", "#W2", "#W9")] == before
    shop("import", "shop.ndjson.gz", "--store", "other.sqlite3", "--namespace", "copy")
    assert answer(shop, "#W2", "--store", "other.sqlite3", namespace="copy")["result"]["content"] == "lost"


def test_an_export_that_fails_leaves_what_was_there(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "old.ndjson").write_text("before")
    status, _, err = shop("export", "--namespace", "shpo", "--out", "old.ndjson")
    assert (status, "no namespace 'shpo'" in err) == (1, True)
    assert (tmp_path / "old.ndjson").read_text() == "before"
    assert sorted(each.name for each in tmp_path.glob("*.part")) == []
    status, _, err = shop("export", "--namespace", "shop", "--out", "no/such/folder.gz")
    assert (status, "no/such/folder.gz: cannot be written" in err, err.count("\n")) == (1, True, 1)


# -- invalidate --------------------------------------------------------------------------------------------------------


def invalidated(run: Run, *words: str) -> str:
    status, out, _ = run("invalidate", "--namespace", "shop", *words)
    assert status == 0
    return out.split(" from ")[0]


def test_entries_go_by_what_is_named_and_all_of_it_must_hold(shop: Run) -> None:
    assert invalidated(shop, "--older-than", "7d") == "0 entries removed"
    assert invalidated(shop, "--tool", GET, "--environment", "shop@2") == "0 entries removed"
    assert invalidated(shop, "--tag", "nightly") == "0 entries removed"
    assert invalidated(shop, "--tool", CANCEL, "--environment", "shop@1") == "1 entries removed"
    assert answer(shop, "#W1", name=CANCEL)["tier"] == "miss"
    assert answer(shop, "#W1")["tier"] == "exact"
    assert invalidated(shop, "--older-than", "0s") == "3 entries removed"


def test_everything_goes_only_if_that_is_said_and_nothing_else(shop: Run) -> None:
    for words in ((), ("--all", "--tool", GET)):
        status, _, err = shop("invalidate", "--namespace", "shop", *words)
        assert (status, "or --all; not both" in err, err.count("\n")) == (1, True, 1)
    assert invalidated(shop, "--all") == "4 entries removed"


@pytest.mark.parametrize("age", ["7", "1w", "s", "7 d", "7d ", ""])
def test_an_age_without_its_unit_is_no_age(run: Run, capsys: pytest.CaptureFixture[str], age: str) -> None:
    with pytest.raises(SystemExit):
        run("invalidate", "--namespace", "n", "--older-than", age)
    assert "is no age" in capsys.readouterr().err


# -- namespaces --------------------------------------------------------------------------------------------------------


def test_namespaces_are_put_listed_and_deleted(shop: Run, tmp_path: Path) -> None:
    (tmp_path / "both.json").write_text(json.dumps({"bank": TOOLS, "port": TOOLS[:1]}))
    status, out, _ = shop("namespaces", "put", "both.json")
    assert (status, out) == (0, "bank: 2 tools in toolcache.sqlite3\nport: 1 tools in toolcache.sqlite3\n")
    assert shop("namespaces", "put", "both.json", "--domain", "port", "--namespace", "mine")[0] == 0
    assert shop("namespaces", "list")[1] == "bank\nmine\nport\nshop\n"
    status, _, err = shop("namespaces", "delete", "shop")
    assert (status, "shop with its 4 entries" in err, "--yes" in err) == (1, True, True)
    status, out, _ = shop("namespaces", "delete", "shop", "--yes")
    assert (status, out) == (0, "shop is deleted with its 4 entries\n")
    assert shop("namespaces", "list")[1] == "bank\nmine\nport\n"
    assert "no namespace 'shop'" in shop("namespaces", "delete", "shop", "--yes")[2]


# -- keys, and a service that asks for them ----------------------------------------------------------------------------


def test_a_key_is_shown_once_alone_on_standard_output(run: Run) -> None:
    assert "no keys yet" in run("keys", "list")[1]
    status, out, err = run("keys", "create", "--name", "ci", "--role", "write", "--namespace", "a", "--namespace", "b")
    secret = out.strip()
    key_id = secret.split("_")[1]
    assert (status, secret.startswith("tck_"), out.count("\n")) == (0, True, 1)
    assert f"key {key_id} of ci: write in a, b, made in toolcache.sqlite3." in err
    assert secret not in err
    listed = run("keys", "list")[1]
    assert (key_id in listed, "a, b" in listed, secret in listed) == (True, True, False)
    assert run("keys", "revoke", key_id)[:2] == (0, f"key {key_id} is revoked\n")
    assert "no keys yet" in run("keys", "list")[1]
    status, _, err = run("keys", "revoke", key_id)
    assert (status, "unknown_key" in err) == (1, True)


@pytest.mark.parametrize("words", [(), ("--store", "other.sqlite3")])
def test_no_key_is_made_in_a_store_that_nothing_uses_yet(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    status, out, err = run("keys", "create", "--name", "ci", "--namespace", "a", *words)
    assert (status, out, err.count("\n"), "--url" in err, "--store" in err) == (1, "", 1, True, True)
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_asks_for_keys_is_used_with_one_and_never_shows_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = "the admin's own secret"
    store = MemoryStore()
    (tmp_path / "runs.jsonl").write_text(SEEDS)
    (tmp_path / "tools.json").write_text(json.dumps({"shop": TOOLS}))
    with serving(made(store, keyring=Keyring(store, admin_key_hash=hash_of(admin))).app) as url:
        status, _, err = run("stats", "--url", url)
        assert (status, "unauthenticated (401)" in err, err.count("\n")) == (1, True, 1)
        monkeypatch.setenv("TOOLCACHE_URL", url)
        monkeypatch.setenv("TOOLCACHE_API_KEY", admin)
        assert run("import", "runs.jsonl")[0] == 0
        status, reader, err = run("keys", "create", "--name", "reader", "--namespace", "shop")
        assert (status, f"made in {url}." in err) == (0, True)
        reader = reader.strip()
        monkeypatch.delenv("TOOLCACHE_API_KEY")
        assert answer(run, "#W1", "--api-key", reader)["tier"] == "exact"
        status, out, err = run("invalidate", "--namespace", "shop", "--all", "--api-key", reader)
        assert (status, "forbidden (403)" in err, reader in out + err, admin in out + err) == (1, True, False, False)


def test_a_key_is_not_shown_either_where_the_service_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolcache_client.client.RETRY_PAUSES_S", (0.0,))
    status, out, err = run("stats", "--url", "http://127.0.0.1:1", "--api-key", "tck_1_hidden")
    assert (status, "hidden" in out + err) == (1, False)


def test_a_login_in_the_store_s_address_is_not_shown(run: Run) -> None:
    status, out, err = run("stats", "--store", "redis://me:hidden@127.0.0.1:1/0")
    assert (status, "hidden" in out + err, err.count("\n")) == (1, False, 1)


# -- output that nobody reads to its end -------------------------------------------------------------------------------


def test_a_reader_that_has_had_enough_ends_the_command_without_a_trace(shop: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "toolcache.main", "export", "--namespace", "shop"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


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
