"""Ways to ask again: rewordings that mean the same, and near misses that look the same and mean something else.

One edit each, by a rule, so that it is known what differs; `SEVERAL` is three edits at once, as people and models
reword. A rule that does not apply to a need gives nothing. The same seed gives the same texts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from benchmarks.search.corpus import MODULES
from benchmarks.search.needs import VERSIONS, Need
from benchmarks.search.words import (
    ANTONYMS,
    ARTICLES,
    CONTRACTIONS,
    FILLERS,
    FRONTABLE,
    NEGATED_OPENINGS,
    NUMBERS,
    OBJECTS,
    OTHER_OPENINGS,
    PREPOSITIONS,
    SPELLINGS,
    SYNONYMS,
)


class Kind(StrEnum):
    """How the asked query differs from the one asked first."""

    CASE = "case and punctuation"
    FILLER = "politeness"
    OPENING = "question template"
    ARTICLES = "articles dropped"
    CONTRACTION = "contraction"
    ORDER = "word order"
    SPELLING = "spelling variant"
    KEYWORDS = "keywords only"
    SYNONYM = "synonym"
    SEVERAL = "several at once"
    TYPO = "typo"
    VERSION = "another version"
    NUMBER = "another number"
    NEGATION = "negation"
    ANTONYM = "antonym"
    MODULE = "another module"
    OBJECT = "another object"
    NEED = "another need"
    """The nearest query of all other needs: no rule makes it."""

    @property
    def keeps_meaning(self) -> bool:
        return self not in NEAR_MISSES


NEAR_MISSES = (Kind.VERSION, Kind.NUMBER, Kind.NEGATION, Kind.ANTONYM, Kind.MODULE, Kind.OBJECT, Kind.NEED)
REWORDINGS = tuple(kind for kind in Kind if kind not in NEAR_MISSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """A query that is asked when `need.query` is what was recorded."""

    need: Need
    kind: Kind
    asked: str


def variations(needs: Sequence[Need], seed: int) -> list[Variation]:
    """Every rule on every need it applies to, need by need."""
    found: list[Variation] = []
    for need in needs:
        for kind, rule in _RULES.items():
            chance = random.Random(f"{seed}/{need.document}/{kind}")
            asked = rule(need, chance)
            if asked is not None and asked != need.query:
                found.append(Variation(need=need, kind=kind, asked=asked))
    return found


# -- rewordings --------------------------------------------------------------------------------------------------------


def _case(need: Need, chance: random.Random) -> str:
    query = need.query
    return chance.choice(
        (f"{query[0].upper()}{query[1:]}?", f"{query} ...", query.replace(" ", "  "), f"{query}??", f"({query})")
    )


def _filler(need: Need, chance: random.Random) -> str:
    before, after = chance.choice(FILLERS)
    return f"{before}{need.query}{after}"


def _opening(need: Need, chance: random.Random) -> str:
    return replace(need, opening=chance.choice(OTHER_OPENINGS)).query


def _without_articles(need: Need, chance: random.Random) -> str:
    return " ".join(word for word in need.query.split() if word not in ARTICLES)


def _contraction(need: Need, chance: random.Random) -> str:
    query = need.query
    for whole, short in CONTRACTIONS.items():
        query = re.sub(rf"\b{whole}\b", short, query)
    return query


def _order(need: Need, chance: random.Random) -> str | None:
    if need.clause:
        return f"{need.clause}, {need.opening} {need.phrase}"
    words = need.phrase.split()
    place = next((n for n, word in enumerate(words) if n >= 2 and word in FRONTABLE), None)
    if place is None:
        return None
    return f"{' '.join(words[place:])}, {need.opening} {' '.join(words[:place])}"


def _spelling(need: Need, chance: random.Random) -> str:
    return replace(need, phrase=" ".join(map(_respelt, need.phrase.split()))).query


def _respelt(word: str) -> str:
    """
    >>> _respelt("normalized"), _respelt("size"), _respelt("filename"), _respelt("user-defined")
    ('normalised', 'size', 'file name', 'user defined')
    """
    if word in SPELLINGS:
        return SPELLINGS[word]
    if re.fullmatch(r"[a-z]{2,}-[a-z]{2,}", word):
        return word.replace("-", " ")
    return re.sub(r"(?<=[a-z]{4})iz(e|es|ed|er|ing|ation)$", r"is\1", word)


def _keywords(need: Need, chance: random.Random) -> str:
    small = ARTICLES | PREPOSITIONS | {"is", "are", "was", "be", "that", "this", "and", "or", "it", "its", "whether"}
    return " ".join(word for word in f"{need.phrase} {need.clause}".split() if word not in small)


def _synonym(need: Need, chance: random.Random) -> str | None:
    phrase = _reworded(need.phrase, chance)
    return None if phrase is None else replace(need, phrase=phrase).query


def _reworded(phrase: str, chance: random.Random) -> str | None:
    """Up to two of its words replaced by synonyms."""
    words = phrase.split()
    known = [n for n, word in enumerate(words) if word in SYNONYMS]
    for n in chance.sample(known, min(2, len(known))):
        words[n] = SYNONYMS[words[n]]
    return " ".join(words) if known else None


def _several(need: Need, chance: random.Random) -> str:
    before, after = chance.choice(FILLERS)
    phrase = _reworded(need.phrase, chance) or need.phrase
    return f"{before}{replace(need, opening=chance.choice(OTHER_OPENINGS), phrase=phrase).query}{after}"


def _typo(need: Need, chance: random.Random) -> str | None:
    """One slip in one of the longer words, inside it."""
    words = need.phrase.split()
    long = [n for n, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word.islower()]
    if not long:
        return None
    n = chance.choice(long)
    word, at = words[n], chance.randrange(1, len(words[n]) - 2)
    words[n] = chance.choice(
        (
            f"{word[:at]}{word[at + 1]}{word[at]}{word[at + 2 :]}",  # two letters change places
            f"{word[:at]}{word[at + 1 :]}",  # one is left out
            f"{word[:at]}{word[at]}{word[at:]}",  # one comes twice
        )
    )
    if words[n] == word:  # two equal letters changed places
        words[n] = f"{word[:at]}{word[at + 1 :]}"
    return replace(need, phrase=" ".join(words)).query


# -- near misses -------------------------------------------------------------------------------------------------------


def _another_version(need: Need, chance: random.Random) -> str | None:
    if not need.clause.startswith("in Python "):
        return None
    other = chance.choice([version for version in VERSIONS if not need.clause.endswith(f" {version}")])
    return replace(need, clause=f"in Python {other}").query


def _another_number(need: Need, chance: random.Random) -> str | None:
    phrase = re.sub(r"\d+", lambda found: _OTHER_NUMBERS.get(found[0], str(int(found[0]) + 1)), need.phrase, count=1)
    if phrase == need.phrase:
        phrase = _swapped(phrase, NUMBERS)
    return None if phrase == need.phrase else replace(need, phrase=phrase).query


_OTHER_NUMBERS = {"8": "16", "16": "32", "32": "64", "64": "32", "85": "64", "4": "6", "6": "4"}
"""As formats and protocols are numbered: Base64, UTF-8, IPv4."""


def _negation(need: Need, chance: random.Random) -> str:
    """ "whether it is" becomes "whether it is not"; what is done is to be not done."""
    if need.phrase.startswith("check whether "):
        phrase, count = re.subn(r"\b(is|are|was|has|can|should|does)\b", r"\1 not", need.phrase, count=1)
        if count:
            return replace(need, phrase=phrase).query
    return replace(need, opening=chance.choice(NEGATED_OPENINGS)).query


def _antonym(need: Need, chance: random.Random) -> str | None:
    """All words that have an opposite become it, so that "from radians to degrees" becomes "from degrees to radians".

    "get" becomes "set" only where nothing else has an opposite: nearly every second need begins with it.
    """
    others = {word: opposite for word, opposite in ANTONYMS.items() if word != "get"}
    phrase = _swapped(need.phrase, others)
    if phrase == need.phrase:
        phrase = _swapped(need.phrase, {"get": "set"})
    return None if phrase == need.phrase else replace(need, phrase=phrase).query


def _another_module(need: Need, chance: random.Random) -> str | None:
    if not need.clause.startswith("with "):
        return None
    others = [name for name in MODULES if "." not in name and name != need.clause.removeprefix("with ")]
    return replace(need, clause=f"with {chance.choice(others)}").query


def _another_object(need: Need, chance: random.Random) -> str | None:
    words = need.phrase.split()
    known = [n for n, word in enumerate(words) if n > 0 and word in OBJECTS]
    if not known:
        return None
    n = chance.choice(known)
    words[n] = OBJECTS[words[n]]
    return replace(need, phrase=" ".join(words)).query


def _swapped(phrase: str, others: dict[str, str]) -> str:
    return " ".join(others.get(word, word) for word in phrase.split())


_RULES: dict[Kind, Callable[[Need, random.Random], str | None]] = {
    Kind.CASE: _case,
    Kind.FILLER: _filler,
    Kind.OPENING: _opening,
    Kind.ARTICLES: _without_articles,
    Kind.CONTRACTION: _contraction,
    Kind.ORDER: _order,
    Kind.SPELLING: _spelling,
    Kind.KEYWORDS: _keywords,
    Kind.SYNONYM: _synonym,
    Kind.SEVERAL: _several,
    Kind.TYPO: _typo,
    Kind.VERSION: _another_version,
    Kind.NUMBER: _another_number,
    Kind.NEGATION: _negation,
    Kind.ANTONYM: _antonym,
    Kind.MODULE: _another_module,
    Kind.OBJECT: _another_object,
}
