"""A namespace as it decides answers: its tools under the operator's policy, with what their recordings taught.

Read from the store once a revision. Every read of entries brings the revision along, so a change that another process
made is seen by the very next lookup, without a round trip of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from toolcache.core.ports import Known, Store
from toolcache.core.profile import Profile, unlearned
from toolcache.core.tools import Effect, Namespace, Tier, Tool


class UnknownNamespace(LookupError):
    """No such namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"no namespace {namespace!r}; create it with PUT /v1/namespaces/{namespace}")
        self.namespace = namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPolicy:
    """A tool, and what is known of it under today's policy."""

    tool: Tool
    profile: Profile
    may_be_similar: bool
    may_be_guessed: bool
    needs_vectors: bool
    """Whether an answer could depend on its entries' vectors now."""
    is_pure: bool
    is_plain: bool
    """Whether its recorded calls can be answered the short way (quick.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    namespace: Namespace
    revision: int
    tools: Mapping[str, ToolPolicy]

    @property
    def name(self) -> str:
        return self.namespace.name


def policy_of(known: Known) -> Policy:
    return Policy(
        namespace=known.namespace,
        revision=known.revision,
        tools={name: _tool_policy(known, tool) for name, tool in known.namespace.tools.items()},
    )


def _tool_policy(known: Known, tool: Tool) -> ToolPolicy:
    namespace = known.namespace
    learned = known.profiles.get(tool.name)
    profile = unlearned(tool) if learned is None else learned.under(tool, namespace.similar_threshold)
    profile = profile.with_shadows(known.shadows.get(tool.name, {}))
    may_be_similar = Tier.SIMILAR in namespace.tiers and (tool.reads or tool.simulate_writes) and profile.can_be_similar
    may_be_guessed = Tier.APPROXIMATE in namespace.tiers and tool.reads
    rewords = may_be_similar and may_reword(namespace, tool, profile)
    return ToolPolicy(
        tool=tool,
        profile=profile,
        may_be_similar=may_be_similar,
        may_be_guessed=may_be_guessed,
        needs_vectors=rewords or may_be_guessed,
        is_pure=tool.effect is Effect.PURE,
        is_plain=Tier.EXACT in namespace.tiers
        and tool.reads
        and tool.samples == 1
        and tool.ttl_s is None
        and not tool.masks,
    )


def may_reword(namespace: Namespace, tool: Tool, profile: Profile) -> bool:
    """Whether an answer to another wording could be trusted enough at any score: asked before the encoder is."""
    return profile.can_reword and profile.may_reword(tool.similar_floor, namespace.similar_threshold)


class Policies:
    """The policies of all namespaces, each as of the newest revision this process has seen."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._policies: dict[str, Policy] = {}

    async def of(self, namespace: str) -> Policy:
        """Raises UnknownNamespace, StoreUnavailable."""
        policy = self._policies.get(namespace)
        return await self.newest(namespace) if policy is None else policy

    async def current(self, namespace: str) -> Policy:
        """The newest, for the price of asking the store for its revision. Raises UnknownNamespace, StoreUnavailable."""
        policy = await self.of(namespace)
        found = await self._store.get(namespace, [])
        return policy if found.revision == policy.revision else await self.newest(namespace)

    async def newest(self, namespace: str) -> Policy:
        """The same, read anew. Raises UnknownNamespace, StoreUnavailable."""
        # No name that could be made has other characters, and no store need be asked for one.
        known = await self._store.known(namespace) if namespace.isascii() else None
        if known is None:
            self._policies.pop(namespace, None)
            raise UnknownNamespace(namespace)
        self._policies[namespace] = made = policy_of(known)
        return made
