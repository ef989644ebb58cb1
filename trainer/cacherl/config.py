"""Run files: one TOML a run, dotted flags on top, unknown keys are errors, the resolved run saved beside its results.

Read before anything heavy is imported, so that a slip in a run file costs a moment and not the loading of torch.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import tomli_w

from cacherl.errors import RunMisconfigured

_T = TypeVar("_T")


def read_run(path: Path, kind: type[_T], overrides: Sequence[str] = ()) -> _T:
    """The run a file describes, with `--section.key value` flags laid over it.

    `kind` is a dataclass whose fields are settings or sections (dataclasses again); what the file leaves out keeps
    its default. Raises RunMisconfigured naming the file, the key and what would be right.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunMisconfigured(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunMisconfigured(f"{path}: not TOML ({error})") from error
    for key, value in _flags(overrides):
        _lay(document, key, value)
    _refuse_unknown(document, kind, path, ())
    try:
        return msgspec.convert(document, type=kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise RunMisconfigured(f"{path}: {error}") from error


def write_run(path: Path, run: Any) -> None:
    """Save the resolved run as TOML; reading it back gives the same run."""
    path.write_text(tomli_w.dumps(_without_none(msgspec.to_builtins(run))), encoding="utf-8")


def _flags(words: Sequence[str]) -> list[tuple[tuple[str, ...], Any]]:
    """(key path, value) of `--a.b value` pairs; a value is read as TOML, or as a string where it is none."""
    if len(words) % 2:
        raise RunMisconfigured(f"flag {words[-1]!r} has no value")
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, text in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--"):
            raise RunMisconfigured(f"{name!r} is no setting; write --section.key value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        found.append((tuple(name[2:].split(".")), value))
    return found


def _lay(document: dict[str, Any], key: Sequence[str], value: Any) -> None:
    section = document
    for name in key[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise RunMisconfigured(f"--{'.'.join(key)}: {name} is a value, not a section")
    section[key[-1]] = value


def _refuse_unknown(document: Mapping[str, Any], kind: Any, path: Path, above: tuple[str, ...]) -> None:
    known = get_type_hints(kind)
    for name, value in document.items():
        if name not in known:
            where = ".".join((*above, name))
            raise RunMisconfigured(f"{path}: unknown setting {where}; there are {', '.join(sorted(known))}")
        if dataclasses.is_dataclass(known[name]) and isinstance(value, dict):
            _refuse_unknown(value, known[name], path, (*above, name))


def _without_none(value: Any) -> Any:
    """TOML has no null: a setting that is None is left out, which reads back as its default."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value
