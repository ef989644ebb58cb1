"""Three searches over the same documents: by words as they stand, by words as English, by meaning.

Search tools that agents call are of these kinds, and rewording does different things to them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.corpus import Document
from benchmarks.search.vectors import PreparedVectors

MOST_RESULTS = 10
K1, B = 1.2, 0.75
"""Of BM25: how fast a repeated term stops adding, and how much long documents pay. The usual values."""

Analyzer = Callable[[str], list[str]]


class Search(Protocol):
    def best(self, query: str, count: int) -> list[Document]:
        """The best documents, best first, always in the same order; fewer where nothing else matches at all."""
        ...


class SearchTool:
    """What an agent calls: the first k ids and modules, as JSON. A query is searched for once."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._found: dict[str, tuple[Document, ...]] = {}

    def documents(self, query: str) -> tuple[Document, ...]:
        """The first MOST_RESULTS."""
        if query not in self._found:
            self._found[query] = tuple(self._search.best(query, MOST_RESULTS))
        return self._found[query]

    def ids(self, query: str, k: int) -> tuple[str, ...]:
        return tuple(document.id for document in self.documents(query)[:k])

    def content(self, query: str, k: int) -> str:
        """What the tool returns."""
        return json.dumps({"results": [{"id": each.id, "module": each.module} for each in self.documents(query)[:k]]})


def passage(document: Document) -> str:
    """What is searched of a document."""
    return f"{document.id}: {document.text}"


# -- by words ----------------------------------------------------------------------------------------------------------


def plain_terms(text: str) -> list[str]:
    """Lower-case runs of letters and digits, none left out: a search engine with no language set.

    >>> plain_terms("How do I read a .zip file?")
    ['how', 'do', 'i', 'read', 'a', 'zip', 'file']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def english_terms(text: str) -> list[str]:
    """The same without function words and without plurals: a search engine told that the text is English.

    >>> english_terms("How do I read the entries of a directory?")
    ['read', 'entry', 'directory']
    """
    return [_singular(term) for term in plain_terms(text) if term not in _FUNCTION_WORDS]


_FUNCTION_WORDS = frozenset(
    """
    a an the this that these those it its i me my we our you your
    am is are was were be been being do does did have has had having can could will would shall should may might must
    what which who how when where why whether if then there here not no nor
    and or but so as at by for from in into of off on onto out over to under up with
    s d ll re ve t m don doesn isn aren hasn
    """.split()
)
"""As in the lists that engines bring along, "not" is one of them: such a search does not hear a negation."""


def _singular(term: str) -> str:
    """Plural to singular by the three rules of the S stemmer (D. Harman, "How effective is suffixing?", JASIS 42(1),
    1991): the first rule whose ending fits decides.

    >>> [_singular(term) for term in ("queries", "files", "class", "status", "bytes")]
    ['query', 'file', 'class', 'status', 'byte']
    """
    if term.endswith("ies") and not term.endswith(("eies", "aies")):
        return f"{term[:-3]}y"
    if term.endswith("es") and not term.endswith(("aes", "ees", "oes")):
        return term[:-1]
    if term.endswith("s") and not term.endswith(("us", "ss")):
        return term[:-1]
    return term


class Bm25:
    """BM25 over name and text. The sum over the query's terms, each as often as it stands there, of

        ln(1 + (N - n + 0.5) / (n + 0.5))  x  tf / (tf + K1 (1 - B + B length / mean length))

    with n of N documents holding the term. S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25
    and Beyond", 2009, equation 3.15; 1 is added inside the logarithm, as Lucene does, so that no term counts against a
    document.
    """

    def __init__(self, documents: Sequence[Document], terms: Analyzer) -> None:
        self._documents = documents
        self._terms = terms
        counts = [Counter(terms(passage(document))) for document in documents]
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        self._damping = K1 * (1 - B + B * lengths / lengths.mean())
        held: dict[str, dict[int, int]] = defaultdict(dict)
        for place, count in enumerate(counts):
            for term, often in count.items():
                held[term][place] = often
        self._held = {
            term: (np.fromiter(often, dtype=np.int64), np.fromiter(often.values(), dtype=np.float64))
            for term, often in held.items()
        }

    def best(self, query: str, count: int) -> list[Document]:
        return _ranked(self._documents, self.scores(query), count)

    def scores(self, query: str) -> NDArray[np.float64]:
        """One for each document, 0 where no term of the query stands in it."""
        scores = np.zeros(len(self._documents))
        for term, often in Counter(self._terms(query)).items():
            if term in self._held:
                places, frequencies = self._held[term]
                rarity = math.log(1 + (len(self._documents) - len(places) + 0.5) / (len(places) + 0.5))
                scores[places] += often * rarity * frequencies / (frequencies + self._damping[places])
        return scores


# -- by meaning --------------------------------------------------------------------------------------------------------


class ByMeaning:
    """Cosine similarity of the sentence embeddings of query and passage."""

    def __init__(self, documents: Sequence[Document], vectors: PreparedVectors) -> None:
        self._documents = documents
        self._vectors = vectors
        self._rows = np.stack([vectors.row(passage(document)) for document in documents])  # [N, D] unit length

    def best(self, query: str, count: int) -> list[Document]:
        scores = self._rows @ self._vectors.row(query)
        return _ranked(self._documents, scores.astype(np.float64), count)


def _ranked(documents: Sequence[Document], scores: NDArray[np.float64], count: int) -> list[Document]:
    """Best first, of equal scores the earlier document; those that score 0 are no match."""
    # Rounded: sums in another order differ in the last digits, and equal passages must stay in the documents' order.
    order = np.argsort(-np.round(scores, 9), kind="stable")[:count]
    return [documents[place] for place in order if scores[place] > 0]
