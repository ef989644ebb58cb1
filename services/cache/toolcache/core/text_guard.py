"""What two wordings must share before they can mean the same.

A sentence embedding hardly moves when an order number, a date, a "not" or the direction of a flight changes
(measured cosines 0.99 and more, other truth). So these are compared as they stand, in their order, and only the rest
of a text is left to the vector: anything with a digit in it, words inside quotes, negations, words of direction and
degree, and capitalised words other than the first of a sentence.

Not covered: meaning carried by ordinary words ("lamp" against "desk" differs by one lower-case noun). That is left to
the similarity threshold and to the measured trust of the tool.
"""

from __future__ import annotations

import re

_NEGATIONS = frozenset(
    ("no", "not", "never", "none", "nothing", "neither", "nor", "without", "except", "cannot", "nobody")
)
_DIRECTIONS = frozenset(
    """
    from to before after above below over under more less most least increase decrease enable disable enabled disabled
    on off in out up down open close opened closed first last next previous highest lowest cheapest minimum maximum
    min max start stop begin end add remove include exclude all any only and or allow deny
    """.split()
)
_TOKEN = re.compile(r"\"[^\"]*\"|[^\s\"]+")
_EDGES = ".,;:!?()[]{}'\"`"
_SENTENCE_END = (".", "!", "?", ":", "\n")


def critical_tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text that must be equal, in their order.

    >>> critical_tokens("Please cancel order #W0034567, do not refund Mia.")
    ('#W0034567', 'not', 'Mia')
    >>> critical_tokens("flights from Boston to Denver") == critical_tokens("flights from Denver to Boston")
    False
    """
    critical: list[str] = []
    starts_sentence = True
    for raw in _TOKEN.findall(text):
        if raw.startswith('"'):
            critical.append(raw)
        else:
            critical.extend(_critical_word(raw.strip(_EDGES), starts_sentence))
        starts_sentence = raw.endswith(_SENTENCE_END)
    return tuple(critical)


def _critical_word(word: str, starts_sentence: bool) -> tuple[str, ...]:
    lowered = word.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if lowered in _NEGATIONS or lowered.endswith("n't"):
        return ("not",) if lowered in ("not", "cannot") or lowered.endswith("n't") else (lowered,)
    if lowered in _DIRECTIONS:
        return (lowered,)
    # Anything that is not plain letters (digits, slashes, operators, under_scores) is an identifier or an expression.
    if not lowered.replace("'", "").replace("-", "").isalpha() and lowered:
        return (word,)
    is_name = word[:1].isupper() and not starts_sentence and lowered not in ("i", "i'm", "i'd", "i'll", "i've")
    return (word,) if is_name or word[1:] != word[1:].lower() else ()
