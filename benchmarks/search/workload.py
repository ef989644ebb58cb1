"""The whole workload: documents, needs, variations, three searches, pairs and reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.search import pairs, reuse
from benchmarks.search.corpus import Document
from benchmarks.search.needs import needs as drawn
from benchmarks.search.retrieval import Bm25, ByMeaning, SearchTool, english_terms, passage, plain_terms
from benchmarks.search.rewording import REWORDINGS, Kind, variations
from benchmarks.search.vectors import PreparedVectors
from toolcache.core.ports import Embedder

TRIALS: tuple[tuple[int, str, tuple[Kind, ...]], ...] = (
    (1, "everything", tuple(Kind)),
    (1, "rewordings", REWORDINGS),
    (5, "everything", tuple(Kind)),
)
"""k, and what had been asked before: a cache that has met only rewordings never heard of near misses."""


async def measured(
    corpus: Sequence[Document], embedder: Embedder, *, needs: int, seed: int, tell: Callable[[str], object]
) -> dict[str, Any]:
    """All numbers, as JSON."""
    wanted = drawn(corpus, needs, seed)
    varied = variations(wanted, seed)
    tell(f"{len(corpus)} documents, {len(wanted)} needs, {len(varied)} variations; embedding ...")
    vectors = PreparedVectors(embedder)
    queries = [*(need.query for need in wanted), *(each.asked for each in varied)]
    await vectors.prepare(
        [
            *(passage(document) for document in corpus),
            *queries,
            *(pairs.call_text(query, k) for query in queries for k, *_ in TRIALS),
        ]
    )
    tools = search_tools(corpus, vectors)
    found: dict[str, Any] = {
        "embedder": embedder.version,
        "documents": len(corpus),
        "needs": len(wanted),
        "seed": seed,
        "variations": dict(Counter(each.kind.value for each in varied)),
        "pairs": {},
        "reuse": [],
    }
    every_pair = pairs.pairs(varied, wanted, vectors)
    for search, tool in tools.items():
        tell(f"comparing {len(every_pair)} pairs, {search} ...")
        found["pairs"][search] = pairs.statistics([pairs.compared(tool, pair, vectors) for pair in every_pair])
    for search, tool in tools.items():
        for k, recorded, kinds in TRIALS:
            tell(f"replaying {search}, k = {k}, {recorded} recorded ...")
            policies = await reuse.replayed(tool, vectors, k, reuse.trial(wanted, varied, kinds, seed))
            found["reuse"].append({"search": search, "k": k, "recorded": recorded, "policies": policies})
    return found


def search_tools(corpus: Sequence[Document], vectors: PreparedVectors) -> dict[str, SearchTool]:
    """One tool for each way to search."""
    return {
        "BM25": SearchTool(Bm25(corpus, plain_terms)),
        "BM25, English": SearchTool(Bm25(corpus, english_terms)),
        "embeddings": SearchTool(ByMeaning(corpus, vectors)),
    }


def rounded(value: Any) -> Any:
    """Floats to four digits: the file is read by people."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {name: rounded(each) for name, each in value.items()}
        case list():
            return [rounded(each) for each in value]
        case _:
            return value
