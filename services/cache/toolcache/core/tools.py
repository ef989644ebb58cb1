"""A namespace's tools and policy: what the operator says about them, checked once, asked often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from toolcache.core.patterns import PatternRefused, compiled

MOST_SAMPLES = 64
"""Samples kept of one call of a stochastic tool: twice the largest groups in use."""


class Effect(StrEnum):
    """What a call does to the world. Names are no annotation (`cd` writes, in one benchmark): unannotated is WRITE."""

    PURE = "pure"
    READ = "read"
    WRITE = "write"


class Role(StrEnum):
    """What an argument's value means to the result."""

    IDENTITY = "identity"
    """Another value is another question: identifiers, numbers, dates, enums, expressions, names."""
    FREE_TEXT = "free_text"
    """Another wording can be the same question."""
    IRRELEVANT = "irrelevant"
    """It was never seen to change the result."""


class Tier(StrEnum):
    EXACT = "exact"
    SIMILAR = "similar"
    APPROXIMATE = "approximate"
    MISS = "miss"


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[ValidationError]:
    """JSON schema's `pattern` in bounded time. One that cannot be matched so is taken to be met."""
    if not isinstance(instance, str):
        return
    with suppress(PatternRefused, UnicodeEncodeError):
        if compiled(pattern).search(instance) is None:
            yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    """The same for `patternProperties`."""
    if not isinstance(instance, dict):
        return
    for pattern, schema in patterns.items():
        for name, value in instance.items():
            with suppress(PatternRefused, UnicodeEncodeError):
                if compiled(pattern).search(name) is not None:
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


_Validator = extend(Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties})


class NamespaceInvalid(ValueError):
    """A toolset that cannot be used: a broken JSON schema, a tool twice, a role for an argument that is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A part of the arguments that cannot matter: request ids, nonces, trace headers."""

    argument: str
    pattern: str = ""
    """Regular expression: what it matches in the argument's strings is masked. Empty: the whole argument is."""


@dataclass(frozen=True, kw_only=True)
class Tool:
    """One tool: its JSON schema and what is known of its effect and arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect = Effect.WRITE
    roles: Mapping[str, Role] = field(default_factory=dict)
    """The operator's word, by argument."""
    errors_change_state: bool = False
    ttl_s: float | None = None
    """Seconds a result stays true; None: for ever."""
    samples: int = 1
    """Results kept a call; more than 1 for a stochastic tool."""
    masks: tuple[Mask, ...] = ()
    simulate_writes: bool = False
    similar_floor: float = 0.9
    """Least proven precision with which similar answers are served (trust.py)."""

    def __post_init__(self) -> None:
        try:
            Draft202012Validator.check_schema(dict(self.parameters))
        except SchemaError as error:
            raise NamespaceInvalid(f"tool {self.name}: its parameters are no JSON schema: {error.message}") from error
        unknown = set(self.roles) - set(self.properties)
        if unknown:
            raise NamespaceInvalid(f"tool {self.name}: role given for {sorted(unknown)}, not among its parameters")
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise NamespaceInvalid(f"tool {self.name}: ttl_s is {self.ttl_s}; leave it out for results that stay true")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise NamespaceInvalid(f"tool {self.name}: samples is {self.samples}; it must lie in 1..{MOST_SAMPLES}")
        if not 0.0 <= self.similar_floor <= 1.0:
            raise NamespaceInvalid(f"tool {self.name}: similar_floor is {self.similar_floor}; it must lie in 0..1")
        for mask in self.masks:
            try:
                compiled(mask.pattern)
            except PatternRefused as error:
                raise NamespaceInvalid(f"tool {self.name}: the mask of {mask.argument}: {error}") from error

    @property
    def properties(self) -> Mapping[str, Any]:
        properties: Mapping[str, Any] = self.parameters.get("properties", {})
        return properties

    @property
    def reads(self) -> bool:
        return self.effect is not Effect.WRITE

    @cached_property
    def _validator(self) -> Draft202012Validator:
        # The empty registry: without it jsonschema would fetch what a "$ref" names from the network.
        return _Validator(dict(self.parameters), registry=Registry())

    def violation(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with these arguments by the tool's schema; None if nothing is."""
        try:
            error = best_match(self._validator.iter_errors(arguments))
        except Unresolvable as reference:
            return f"the schema of {self.name} refers to something outside itself: {reference}"
        except OverflowError as error:  # of a "multipleOf" that meets an integer beyond every float
            return f"arguments: {error}"
        except RecursionError:
            return f"the schema of {self.name} refers to itself without end"
        if error is None:
            return None
        where = ".".join(["arguments", *(str(each) for each in error.absolute_path)])
        return f"{where}: {error.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """The unit of isolation: a toolset, its recordings and the policy by which they are served."""

    name: str
    tools: Mapping[str, Tool]
    tiers: frozenset[Tier] = frozenset({Tier.EXACT, Tier.SIMILAR})
    similar_threshold: float = 0.8
    max_bytes: int = 0
    """Bytes of entries to keep; beyond it the least recently used go. 0: no limit."""
    shadow_share: float = 0.0
    """Share of served answers that ask for a shadow execution."""

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise NamespaceInvalid(f"max_bytes is {self.max_bytes}; 0 means no limit")
        if not 0.0 <= self.shadow_share <= 1.0:
            raise NamespaceInvalid(f"shadow_share is {self.shadow_share}; it must lie in 0..1")
        if not 0.0 <= self.similar_threshold <= 1.0:
            raise NamespaceInvalid(f"similar_threshold is {self.similar_threshold}; it must lie in 0..1")
