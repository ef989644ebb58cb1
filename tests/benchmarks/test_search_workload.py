"""The search workload: documents, ranking, overlap, variations and what is counted of reuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.search import pairs, reuse, workload
from benchmarks.search.corpus import LEAST_CHARACTERS, MOST_CHARACTERS, Document, documents
from benchmarks.search.needs import Need, needs
from benchmarks.search.overlap import jaccard, rank_biased_overlap
from benchmarks.search.retrieval import Bm25, ByMeaning, SearchTool, english_terms, plain_terms
from benchmarks.search.rewording import NEAR_MISSES, REWORDINGS, Kind, Variation, variations
from benchmarks.search.vectors import PreparedVectors
from benchmarks.search.words import SYNONYMS
from toolcache.adapters.hash_embedder import HashEmbedder
from toolcache.core.text_guard import critical_tokens

ROOT = Path(__file__).parents[2]
CORPUS = documents()
NEEDS = needs(CORPUS, 120, seed=3)
VARIED = variations(NEEDS, seed=3)


def varied(kind: Kind) -> list[Variation]:
    return [each for each in VARIED if each.kind is kind]


# -- documents ---------------------------------------------------------------------------------------------------------


def test_there_are_thousands_of_documents_of_sensible_length() -> None:
    assert len(CORPUS) > 2000
    assert all(LEAST_CHARACTERS <= len(each.text) <= MOST_CHARACTERS for each in CORPUS)


def test_no_document_has_the_id_or_the_text_of_another() -> None:
    assert len({each.id for each in CORPUS}) == len({each.text for each in CORPUS}) == len(CORPUS)


def test_another_process_with_other_hashes_finds_the_same_documents() -> None:
    """Each in a process of its own: a library that changes the standard library changes what it says of itself."""
    program = "from benchmarks.search.corpus import documents\nprint([each.id for each in documents()])"
    told = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("7", "8")
    }
    assert len(told) == 1


# -- search ------------------------------------------------------------------------------------------------------------

THREE = [
    Document(id="one", module="m", text="apple apple pie"),
    Document(id="two", module="m", text="apple"),
    Document(id="three", module="m", text="banana bread"),
]
"""With their ids 4, 2 and 3 terms long, so 3 on average."""


@pytest.mark.parametrize(
    ("query", "scores"),
    [
        # ln(1 + 1.5 / 2.5) = 0.470004; 2 / (2 + 1.2 (0.25 + 0.75 x 4/3)) = 2 / 3.5; 1 / (1 + 1.2 x 0.75) = 1 / 1.9
        ("apple", [0.268574, 0.247371, 0.0]),
        ("Apple, apple!", [0.537147, 0.494741, 0.0]),
        # ln(1 + 2.5 / 1.5) = 0.980829; 1 / (1 + 1.2) of a document of mean length
        ("banana", [0.0, 0.0, 0.445831]),
        ("cherry", [0.0, 0.0, 0.0]),
    ],
)
def test_bm25_gives_the_scores_worked_out_by_hand(query: str, scores: list[float]) -> None:
    assert Bm25(THREE, plain_terms).scores(query) == pytest.approx(scores, abs=1e-6)


def test_documents_without_a_term_of_the_query_are_not_found() -> None:
    tool = SearchTool(Bm25(THREE, plain_terms))
    assert tool.ids("apple pie", 3) == ("one", "two")
    assert tool.ids("apple pie", 1) == ("one",)
    assert tool.ids("cherry", 3) == ()


def test_of_equal_scores_the_earlier_document_comes_first() -> None:
    texts = ["apple", "pear", "apple apple", "apple"] * 30
    mixed = [Document(id=str(n), module="m", text=text) for n, text in enumerate(texts)]
    best_first = sorted(range(120), key=lambda n: ("apple apple", "apple", "pear").index(texts[n]))
    assert [each.id for each in Bm25(mixed, plain_terms).best("apple", 90)] == [str(n) for n in best_first[:90]]


def test_english_terms_hear_neither_function_words_nor_plurals() -> None:
    assert english_terms("Could you read the entries, please?") == english_terms("read entry please")
    assert plain_terms("read the entries") != plain_terms("read entry")


async def test_search_by_meaning_finds_the_document_nearest_by_cosine() -> None:
    vectors = PreparedVectors(HashEmbedder())
    await vectors.prepare(["one: apple apple pie", "two: apple", "three: banana bread", "three: banana bred"])
    assert SearchTool(ByMeaning(THREE, vectors)).ids("three: banana bred", 1) == ("three",)


# -- overlap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("abc", "abc", 1.0),
        ("abc", "xyz", 0.0),
        ("", "", 1.0),
        # (2/2) 0.81 + (0.1/0.9) (0 + 0.81)
        ("ab", "ba", 0.9),
        # (2/3) 0.729 + (0.1/0.9) (0.9 + 0.81/2 + 0.729 x 2/3)
        ("abc", "acd", 0.685),
        # (1/2) 0.81 + (0.1/0.9) (0.9 + 0.81/2): the second rank is missing
        ("ab", "a", 0.55),
    ],
)
def test_rank_biased_overlap_is_as_worked_out_by_hand(one: str, other: str, expected: float) -> None:
    assert rank_biased_overlap(one, other) == pytest.approx(expected)
    assert rank_biased_overlap(other, one) == pytest.approx(expected)


def test_rank_biased_overlap_minds_the_order_and_jaccard_does_not() -> None:
    swapped_first, swapped_last = "bacde", "abced"
    assert rank_biased_overlap("abcde", swapped_first) < rank_biased_overlap("abcde", swapped_last) < 1.0
    assert jaccard("abcde", swapped_first) == jaccard("abcde", swapped_last) == 1.0
    assert jaccard("abc", "bcd") == 0.5


# -- variations --------------------------------------------------------------------------------------------------------

NEED = Need(
    document="zlib.crc32",
    opening="what is the way to",
    phrase="read the first normalized line from a compressed file",
    clause="with zlib",
)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (Kind.ARTICLES, "what is way to read first normalized line from compressed file with zlib"),
        (Kind.CONTRACTION, "what's the way to read the first normalized line from a compressed file with zlib"),
        (Kind.ORDER, "with zlib, what is the way to read the first normalized line from a compressed file"),
        (Kind.SPELLING, "what is the way to read the first normalised line from a compressed file with zlib"),
        (Kind.KEYWORDS, "read first normalized line compressed file zlib"),
        (Kind.SYNONYM, "what is the way to load the first normalized line from a compressed document with zlib"),
        (Kind.ANTONYM, "what is the way to write the last normalized line from a compressed file with zlib"),
    ],
)
def test_a_rule_makes_the_text_that_it_promises(kind: Kind, asked: str) -> None:
    assert [each.asked for each in variations([NEED], seed=0) if each.kind is kind] == [asked]


def test_the_same_seed_gives_the_same_variations_and_another_seed_others() -> None:
    assert variations(NEEDS, seed=3) == VARIED
    assert needs(documents(), 120, seed=3) == NEEDS
    assert {each.asked for each in variations(NEEDS, seed=4)} != {each.asked for each in VARIED}
    assert needs(CORPUS, 120, seed=4) != NEEDS


def test_every_class_occurs_and_no_variation_is_the_query_itself() -> None:
    assert {each.kind for each in VARIED} == set(Kind) - {Kind.NEED}
    assert all(each.asked != each.need.query for each in VARIED)


def test_a_near_miss_has_another_critical_token_or_another_word_that_carries_meaning() -> None:
    near_misses = [each for each in VARIED if each.kind in NEAR_MISSES]
    assert len(near_misses) > 100
    for each in near_misses:
        other_token = critical_tokens(each.asked) != critical_tokens(each.need.query)
        assert other_token or english_terms(each.asked) != english_terms(each.need.query), each


@pytest.mark.parametrize("kind", [Kind.VERSION, Kind.NUMBER])
def test_another_number_is_another_critical_token(kind: Kind) -> None:
    assert all(critical_tokens(each.asked) != critical_tokens(each.need.query) for each in varied(kind))


@pytest.mark.parametrize("kind", [Kind.CASE, Kind.ORDER])
def test_these_rewordings_keep_every_word(kind: Kind) -> None:
    assert all(sorted(plain_terms(each.asked)) == sorted(plain_terms(each.need.query)) for each in varied(kind))


@pytest.mark.parametrize("kind", [Kind.ARTICLES, Kind.CONTRACTION])
def test_these_rewordings_keep_every_word_that_carries_meaning(kind: Kind) -> None:
    assert all(english_terms(each.asked) == english_terms(each.need.query) for each in varied(kind))


def test_every_need_has_a_negation() -> None:
    assert len(varied(Kind.NEGATION)) == len(NEEDS)


def test_politeness_only_adds_words() -> None:
    assert all(each.need.query in each.asked for each in varied(Kind.FILLER))


def test_a_typo_changes_one_word_by_one_slip() -> None:
    for each in varied(Kind.TYPO):
        was, became = each.need.query.split(" "), each.asked.split(" ")
        (changed,) = [(one, other) for one, other in zip(was, became, strict=True) if one != other]
        assert sorted(changed[0]) == sorted(changed[1]) or abs(len(changed[0]) - len(changed[1])) == 1, changed
        assert changed[0][0] == changed[1][0], changed


def test_a_synonym_is_one_of_the_list() -> None:
    for each in varied(Kind.SYNONYM):
        gone = set(each.need.phrase.split()) - set(each.asked.split())
        assert gone and gone <= set(SYNONYMS), each


def test_no_class_both_keeps_and_changes_the_meaning() -> None:
    assert set(REWORDINGS).isdisjoint(NEAR_MISSES)
    assert {*REWORDINGS, *NEAR_MISSES} == set(Kind)


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_the_area_under_the_curve_is_that_of_the_pairs_counted_by_hand() -> None:
    # of the four pairs (right, wrong) two are in order, one is equal, one is not
    assert pairs.area_under_roc([(0.9, True), (0.5, True), (0.5, False), (0.7, False)]) == 0.625
    assert pairs.area_under_roc([(0.9, True)]) is None


def test_the_calibration_error_is_the_distance_in_each_band_and_not_over_all() -> None:
    def served(trust: float, score: float, *, is_right: bool) -> reuse.Outcome:
        return reuse.Outcome(kind=Kind.CASE, is_right=is_right, trust=trust, score=score)

    # over all, trust and truth are 0.5; in either band they are 0.3 apart
    outcomes = [served(0.7, 0.99, is_right=True), served(0.3, 0.91, is_right=False)]
    assert reuse.calibration_error(outcomes) == pytest.approx(0.3)
    assert reuse.calibration_error([served(0.5, 0.99, is_right=n < 2) for n in range(4)]) == pytest.approx(0.0)


def test_what_is_asked_was_not_recorded_and_needs_without_a_donor_are_asked_too() -> None:
    known_by_chance = Variation(need=NEEDS[70], kind=Kind.TYPO, asked=NEEDS[0].query)
    planned = reuse.trial(NEEDS, [*VARIED, known_by_chance], REWORDINGS, seed=3)
    asked = {each.asked for each in planned.asked}
    assert asked.isdisjoint(planned.recorded)
    assert {each.kind for each in planned.asked} == set(Kind)
    recorded_kinds = {each.kind for each in VARIED if each.asked in planned.recorded}
    assert recorded_kinds == set(REWORDINGS)


class Constant:
    """Finds the same for every query."""

    def best(self, query: str, count: int) -> list[Document]:
        return THREE


class Literal:
    """Finds something else for every query."""

    def best(self, query: str, count: int) -> list[Document]:
        return [Document(id=query, module="m", text=query)]


async def test_a_search_that_hears_nothing_is_served_right_and_trusted() -> None:
    planned = reuse.trial(NEEDS[:60], VARIED, tuple(Kind), seed=3)
    found = await reuse.replayed(SearchTool(Constant()), PreparedVectors(HashEmbedder()), 3, planned)
    default = found["floor 0.9"]
    assert default["served"] > 50
    assert default["precision"] == default["rank_biased_overlap"] == 1.0
    assert default["mean_trust"] > 0.95
    assert default["served"] + sum(default["misses"].values()) == default["asked"] == len(planned.asked)


async def test_a_search_that_hears_every_letter_is_served_only_without_a_floor_and_always_wrong() -> None:
    planned = reuse.trial(NEEDS[:60], VARIED, tuple(Kind), seed=3)
    found = await reuse.replayed(SearchTool(Literal()), PreparedVectors(HashEmbedder()), 3, planned)
    assert found["floor 0.9"]["served"] == found["floor 0.5"]["served"] == 0
    below = found["floor 0"]
    assert below["served"] > 50
    assert below["right"] == 0
    assert below["mean_trust"] < 0.05
    assert below["calibration_error"] == pytest.approx(below["mean_trust"])


async def test_the_whole_workload_runs_and_counts_every_question() -> None:
    found = await workload.measured(CORPUS[:400], HashEmbedder(), needs=16, seed=1, tell=lambda line: None)
    for search, statistics in found["pairs"].items():
        kinds = statistics["by_kind"]
        assert sum(each["pairs"] for each in kinds.values()) == sum(found["variations"].values()) + found["needs"]
        assert kinds[Kind.CASE]["equal_at_10"] == 1.0 or search == "embeddings"
    assert len(found["reuse"]) == 3 * len(workload.TRIALS)
    for one in found["reuse"]:
        for row in one["policies"].values():
            assert row["served"] + sum(row["misses"].values()) == row["asked"]
            assert row["right"] <= row["served"]
