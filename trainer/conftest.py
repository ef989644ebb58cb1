"""Adapters of libraries that have an environment of their own are not searched for doctests outside of it."""

from importlib.util import find_spec

NEEDS = {"cacherl/adapters/verl_agent_loop.py": "verl", "cacherl/adapters/vllm_engine.py": "vllm"}

collect_ignore = [file for file, library in NEEDS.items() if find_spec(library) is None]
