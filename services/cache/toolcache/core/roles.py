"""Which arguments must be equal and which may differ: from the schema, then the data, then the operator.

Later ones win. What remains when free-text and irrelevant arguments are taken out of a call is its *guard*: only
entries with an equal guard can ever be served as similar.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from toolcache.core.canonical import canonical_json, digest
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
    """Digest of all that must be equal: scope, tool, identity arguments, and the critical tokens of free text.

    An argument unknown to the schema is identity; an absent argument differs from any present one, except where the
    argument is irrelevant.
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
    return digest("toolcache/guard/1", scope, tool, canonical_json(kept))


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
