"""Which arguments must be equal and which may differ: from the schema, then the data, then the operator.

Later ones win. What remains when free-text and irrelevant arguments are taken out of a call is its *guard*: only
entries with an equal guard can ever be served as similar.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from toolcache.core.calls import Call, call_digest
from toolcache.core.canonical import canonical_json, digest
from toolcache.core.entries import Place
from toolcache.core.text_guard import critical_tokens
from toolcache.core.tools import Role, Tool

FREE_TEXT_NAMES = frozenset(
    ("query", "question", "text", "message", "summary", "thought", "description", "comment", "note", "content", "body")
)
"""Names of string arguments that hold sentences, before any value was seen."""
ENOUGH_VALUES = 8
"""Different values of an argument before the data may overrule the schema."""
SENTENCE_WORDS = 4
"""Median number of words from which on a string argument is taken for sentences."""
_WORD = re.compile(r"[^\W\d_]{2,}")


def schema_role(name: str, schema: Mapping[str, Any] | bool) -> Role:
    """The role an argument has by its JSON schema alone. Anything but a plain string is identity.

    >>> schema_role("query", {"type": "string"}), schema_role("query", {"type": "string", "enum": ["a"]})
    (<Role.FREE_TEXT: 'free_text'>, <Role.IDENTITY: 'identity'>)
    """
    return Role.FREE_TEXT if _is_plain_string(schema) and name.lower() in FREE_TEXT_NAMES else Role.IDENTITY


def _is_plain_string(schema: Mapping[str, Any] | bool) -> bool:
    if isinstance(schema, bool):  # JSON schema's "anything" and "nothing"
        return False
    return schema.get("type") == "string" and not {"enum", "const", "format", "pattern"} & set(schema)


def data_role(values: Sequence[Any]) -> Role | None:
    """The role the recorded values of a plain string argument speak for; None while they are too few.

    Sentences are free text; values of few words, or of tokens that are mostly no words, are identity.
    """
    texts = {value for value in values if isinstance(value, str)}
    if len(texts) < ENOUGH_VALUES:
        return None
    tokens = [text.split() for text in texts]
    words = [sum(bool(_WORD.fullmatch(token.strip(".,;:!?()'\""))) for token in each) for each in tokens]
    are_sentences = statistics.median(words) >= SENTENCE_WORDS and sum(words) >= 0.7 * sum(map(len, tokens))
    return Role.FREE_TEXT if are_sentences else Role.IDENTITY


def roles(tool: Tool, values: Mapping[str, Sequence[Any]], irrelevant: frozenset[str] = frozenset()) -> dict[str, Role]:
    """The role of every argument of the tool's schema, given recorded values by argument."""
    found: dict[str, Role] = {}
    for name, schema in tool.properties.items():
        role = schema_role(name, schema)
        if _is_plain_string(schema):
            role = data_role(values.get(name, ())) or role
        if name in irrelevant:
            role = Role.IRRELEVANT
        found[name] = tool.roles.get(name, role)
    return found


def guard(scope: str, tool: str, arguments: Mapping[str, Any], roles: Mapping[str, Role]) -> str:
    """Digest of all that must be equal for an answer that is worded differently: scope, tool and `guard_contents`."""
    return _guard(scope, tool, canonical_json(guard_contents(arguments, roles)))


def _guard(scope: str, tool: str, contents: str) -> str:
    return digest("toolcache/guard/1", scope, tool, contents)


def guard_contents(arguments: Mapping[str, Any], roles: Mapping[str, Role]) -> dict[str, Any]:
    """What of the arguments must be equal: identity arguments as they are, and the critical tokens of free text.

    An argument unknown to the schema is identity; an absent argument differs from any present one, except where the
    argument is irrelevant.

    >>> guard_contents({"city": "Rome", "query": "not far", "page": 2},
    ...     {"query": Role.FREE_TEXT, "page": Role.IRRELEVANT})
    {'city': {'is': 'Rome'}, 'query': {'words': ['not']}}
    """
    kept: dict[str, Any] = {}
    for name, value in arguments.items():
        match roles.get(name, Role.IDENTITY):
            case Role.IRRELEVANT:
                continue
            case Role.FREE_TEXT if isinstance(value, str):
                kept[name] = {"words": list(critical_tokens(value))}
            case _:
                kept[name] = {"is": value}
    return kept


def equal(scope: str, tool: str, arguments: Mapping[str, Any], roles: Mapping[str, Role]) -> str:
    """Digest of scope, tool and all arguments but the irrelevant ones, free text whole.

    "" where no argument of the tool is irrelevant: what is equal then has the same key anyway.
    """
    return _equal(scope, tool, _what_matters(arguments, roles))


def _what_matters(arguments: Mapping[str, Any], roles: Mapping[str, Role]) -> str:
    if Role.IRRELEVANT not in roles.values():
        return ""
    return canonical_json({name: value for name, value in arguments.items() if roles.get(name) is not Role.IRRELEVANT})


def _equal(scope: str, tool: str, what_matters: str) -> str:
    return digest("toolcache/equal/1", scope, tool, what_matters) if what_matters else ""


def place(tool: Tool, scope: str, environment: str, call: Call, roles: Mapping[str, Role]) -> Place:
    """Where an entry of this call can be found by other calls.

    As a donor only if the tool reads or its writes may be simulated, and the call keeps to the schema: the result of
    one that does not is an error sooner or later. What is masked is in none of the digests.
    """
    return Placing(tool, roles).place(scope, environment, call)


class Placing:
    """Places for many entries of one tool: what the same arguments give in another state is worked out once."""

    def __init__(self, tool: Tool, roles: Mapping[str, Role]) -> None:
        self._tool = tool
        self._roles = roles
        self._contents: dict[str, tuple[str, str] | None] = {}

    def place(self, scope: str, environment: str, call: Call) -> Place:
        named = call_digest(environment, call)
        contents = self._of(call)
        if contents is None:
            return Place(call=named)
        guarded, what_matters = contents
        return Place(guard=_guard(scope, call.tool, guarded), equal=_equal(scope, call.tool, what_matters), call=named)

    def _of(self, call: Call) -> tuple[str, str] | None:
        """What guard and equal are digests of; None where the call can answer no other."""
        if not (self._tool.reads or self._tool.simulate_writes):
            return None
        if call.kept is not call.arguments or not self._tool.reads:
            return self._made(call)  # the canonical text may leave out what is against the schema
        if call.canonical not in self._contents:
            self._contents[call.canonical] = self._made(call)
        return self._contents[call.canonical]

    def _made(self, call: Call) -> tuple[str, str] | None:
        if self._tool.violation(call.arguments) is not None:
            return None
        return canonical_json(guard_contents(call.kept, self._roles)), _what_matters(call.kept, self._roles)


def can_be_similar(roles: Mapping[str, Role]) -> bool:
    """Whether two different calls of the tool could ever pass the guard."""
    return any(role is not Role.IDENTITY for role in roles.values())


def text_of(tool: str, arguments: Mapping[str, Any]) -> str:
    """The text that is embedded for a call: the tool and its arguments by name, in the order of their names.

    >>> text_of("search_help", {"query": "lost parcel", "limit": 3})
    'search_help limit: 3; query: lost parcel'
    """
    parts = (
        f"{name}: {value if isinstance(value, str) else canonical_json(value)}"
        for name, value in sorted(arguments.items())
    )
    return f"{tool} {'; '.join(parts)}"
