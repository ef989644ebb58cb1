"""What two wordings must share before they can mean the same.

A sentence embedding hardly moves when an order number, a date, a "not" or the direction of a flight changes
(measured cosines 0.99 and more, other truth). So these are compared as they stand, in their order, and only the rest
of a text is left to the vector: anything with a digit in it, words inside quotes, negations, words of number, time,
direction and degree, single letters, words that are not plain ASCII letters (so a whole text of another script), and
capitalised words other than the first of a sentence.

Not covered: meaning carried by ordinary words ("lamp" against "desk" differs by one lower-case noun), a name that
begins a sentence, and the negations of other languages in Latin script ("nicht", "pas"). That is left to the
similarity threshold and to the measured trust of the tool.
"""

from __future__ import annotations

import re

_NEGATIONS = frozenset(
    """
    no not never none nothing neither nor without except excluding lacking unless cannot nobody nowhere
    dont doesnt didnt isnt arent wasnt werent wont wouldnt cant couldnt shouldnt havent hasnt hadnt
    """.split()
)
_NOT = frozenset(("not", "cannot")) | {word for word in _NEGATIONS if word.endswith("nt")}
_NUMBERS = frozenset(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen half
    quarter single double triple once twice second third fourth fifth sixth seventh eighth ninth tenth both
    """.split()
)
_TIMES = frozenset(
    """
    today tomorrow yesterday tonight now morning noon afternoon evening night midnight weekday weekend day week month
    year daily weekly monthly yearly monday tuesday wednesday thursday friday saturday sunday january february march
    april june july august september october november december spring summer autumn winter
    past future current previous earlier later earliest latest oldest newest
    """.split()
)
_DIRECTIONS = frozenset(
    """
    from to before after above below over under more less most least increase decrease enable disable enabled disabled
    on off in out up down open close opened closed first last next highest lowest cheapest minimum maximum
    min max start stop begin end add remove include exclude all any only and or allow deny
    inbound outbound arrive arrives arrival arrivals depart departs departure departures incoming outgoing
    sender receiver recipient sent received send receive north south east west northern southern eastern western
    left right upper lower inside outside higher smaller larger fewer cheaper longer shorter
    buy sell bought sold import export credit debit deposit withdraw withdrawal lend borrow win lose won
    """.split()
)
_NEGATING_PREFIXES = ("un", "non", "anti")
"""Beside "unavailable" they catch "until" and "union", which costs a hit, not the truth."""
_TOKEN = re.compile(r"\"[^\"]*\"|[^\s\"]+")
_EDGES = ".,;:!?()[]{}'\"`"
_OPENING = "([{'\"`"
"""A sign before a word can belong to it: .5 is not 5, !active not active."""
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
            critical.extend(_critical_word(raw.lstrip(_OPENING).rstrip(_EDGES), starts_sentence))
        starts_sentence = raw.endswith(_SENTENCE_END)
    return tuple(critical)


def _critical_word(word: str, starts_sentence: bool) -> tuple[str, ...]:
    lowered = word.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if lowered in _NOT or lowered.endswith("n't"):
        return ("not",)
    if lowered in _NEGATIONS or lowered in _NUMBERS or lowered in _TIMES or lowered in _DIRECTIONS:
        return (lowered,)
    if lowered.startswith(_NEGATING_PREFIXES):
        return (lowered,)
    plain = lowered.replace("'", "").replace("-", "")
    # Anything that is not plain letters (digits, slashes, operators, under_scores) is an identifier or an expression.
    if lowered and not (plain.isascii() and plain.isalpha()):
        return (word,)
    if len(lowered) == 1 and lowered not in ("a", "i"):
        return (word,)
    is_name = word[:1].isupper() and not starts_sentence and lowered not in ("i", "i'm", "i'd", "i'll", "i've")
    return (word,) if is_name or word[1:] != word[1:].lower() else ()
