"""Information needs, taken from the documents: what the first sentence of a docstring says the thing does."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.search.corpus import Document
from benchmarks.search.words import NUMBERS, OPENINGS

LEAST_WORDS, MOST_WORDS = 4, 12
VERSIONS = ("3.8", "3.9", "3.10", "3.11")

_VERBS = frozenset(
    """
    add append apply bind build call cancel change check clear close compare compile compress compute concatenate
    connect convert copy count create decode decompress delete detach determine disable discard display divide dump
    enable encode ensure escape evaluate execute expand extract fetch fill find flush format generate get guess
    increment insert install invoke join list load locate lock log look make match merge modify move multiply normalize
    notify open parse pop prepare print process provide push put raise read receive register release remove rename
    render replace report reset resolve restore retrieve return reverse rotate round run save schedule search seek
    select send serialize set shift show shut skip sort split start stop store strip suspend swap switch terminate test
    translate truncate undo unlock unpack unregister update validate verify wait wrap write yield
    """.split()
)
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9' ,-]*")
_OTHERWISE = re.compile(r"(,| or| else)( and| or| else)? (raise|return|false)\b.*| and false\b.*", re.IGNORECASE)
"""What happens otherwise is no part of what is wanted."""
_SENTENCE_END = re.compile(r"(?<=\.)\s|\.$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something to find out, as it is first asked."""

    document: str
    """Id of the document it was taken from."""
    opening: str
    phrase: str
    """What is to be done, verb first: "remove an item from the queue"."""
    clause: str = ""
    """Empty, or what limits the question: "with json", "in Python 3.8"."""

    @property
    def query(self) -> str:
        return " ".join(filter(None, (self.opening, self.phrase, self.clause)))


def needs(documents: Sequence[Document], count: int, seed: int) -> list[Need]:
    """So many needs, drawn from the documents; every phrase once.

    Of all of them a third names the module it wants ("with json"), a third the version of Python; the others neither.
    An eighth speaks of a number, which would be too few for a class of their own if chance alone chose.
    """
    chance = random.Random(f"needs/{seed}")
    by_phrase: dict[str, Document] = {}
    for document in documents:
        phrase = phrase_of(document.text)
        if phrase is not None:
            by_phrase.setdefault(phrase.lower(), document)
    numbered = [phrase for phrase in sorted(by_phrase) if _NUMBER.search(phrase)]
    drawn = chance.sample(numbered, min(count // 8, len(numbered)))
    others = sorted(by_phrase.keys() - drawn)
    drawn += chance.sample(others, min(count - len(drawn), len(others)))
    chance.shuffle(drawn)
    return [_need(by_phrase[phrase], chance) for phrase in drawn]


_NUMBER = re.compile(rf"\d|\b({'|'.join(NUMBERS)})\b")


def _need(document: Document, chance: random.Random) -> Need:
    module = document.module.split(".")[-1]
    kind = chance.choice(("none", "module", "version"))
    clause = {
        "none": "",
        "module": "" if module == "builtins" else f"with {module}",
        "version": f"in Python {chance.choice(VERSIONS)}",
    }[kind]
    phrase = phrase_of(document.text)
    assert phrase is not None
    return Need(document=document.id, opening=chance.choice(OPENINGS), phrase=phrase, clause=clause)


def phrase_of(text: str) -> str | None:
    """What the first sentence says is done; None if it is no plain sentence that begins with a common verb.

    >>> phrase_of("Return True if the path is a directory. Follows links.")
    'check whether the path is a directory'
    >>> phrase_of("Returns the bounded port number of the socket.")
    'get the bounded port number of the socket'
    >>> phrase_of("Abstract base class.") is None
    True
    """
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".").strip()
    first, _, rest = sentence.partition(" ")
    verb = first.lower()
    if verb not in _VERBS and verb.removesuffix("s") in _VERBS:
        verb = verb.removesuffix("s")
    if verb not in _VERBS or not _PLAIN.fullmatch(sentence):
        return None
    if verb == "return":
        for start in ("True if and only if ", "true if and only if ", "True if ", "true if ", "whether "):
            if rest.startswith(start):
                verb, rest = "check", f"whether {rest.removeprefix(start)}"
        verb = "get" if verb == "return" else verb
    phrase = _OTHERWISE.sub("", f"{verb} {rest}")
    return phrase if LEAST_WORDS <= len(phrase.split()) <= MOST_WORDS else None
