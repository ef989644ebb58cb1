"""Run files: one TOML a run, dotted flags on top, unknown keys are errors, the resolved run saved beside its results.

Read before anything heavy is imported, so that a slip in a run file costs a moment and not the loading of torch.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from cacherl.data.whole_file import write_whole
from cacherl.errors import RunMisconfigured

_T = TypeVar("_T")
NONE = "none"
"""What a flag says to turn off a setting that may be absent."""
_PLACE = re.compile(r" - at `\$\.?([^`]*)`")


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
    for key, text in _flags(overrides):
        _lay(document, key, _value(text, _hint(kind, key)))
    _refuse_unknown(document, kind, path, ())
    try:
        return msgspec.convert(document, type=kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise RunMisconfigured(f"{path}: {_told(error, kind)}") from error


def write_run(path: Path, run: Any) -> None:
    """Save the resolved run as TOML, whole or not at all; reading it back gives the same run.

    A file that says it already is left alone: other processes may be reading it.
    """
    content = tomli_w.dumps(_without_none(msgspec.to_builtins(run))).encode()
    if not (path.exists() and path.read_bytes() == content):
        write_whole(path, content)


def differences(one: Any, other: Any) -> list[str]:
    """Dotted names of the settings in which two runs of one kind differ, in the order of their fields.

    >>> from cacherl.reward.answer import JudgeWeights
    >>> differences(JudgeWeights(), JudgeWeights(milestones=0.1, truth=0.6))
    ['milestones', 'truth']
    """
    found: list[str] = []
    for each in dataclasses.fields(one):
        a, b = getattr(one, each.name), getattr(other, each.name)
        if dataclasses.is_dataclass(a) and type(a) is type(b):
            found += [f"{each.name}.{inner}" for inner in differences(a, b)]
        elif a != b:
            found.append(each.name)
    return found


def _flags(words: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key path, text of the value) of `--a.b value` pairs."""
    if len(words) % 2:
        raise RunMisconfigured(f"flag {words[-1]!r} has no value")
    for name, text in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--"):
            raise RunMisconfigured(f"{name!r} is no setting; write --section.key value")
        yield tuple(name[2:].split(".")), text


def _value(text: str, hint: Any) -> Any:
    """What a flag's text means where `hint` is wanted: TOML, or the text itself where it is none.

    A text is taken as it stands, `none` turns off what may be absent, and one value will do for a list of one.
    """
    wanted = _present(hint)
    if text == NONE and wanted is not hint:
        return None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if wanted is str and not isinstance(value, str):
        return text
    return [value] if get_origin(wanted) is tuple and not isinstance(value, list) else value


def _lay(document: dict[str, Any], key: Sequence[str], value: Any) -> None:
    section = document
    for name in key[:-1]:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise RunMisconfigured(f"--{'.'.join(key)}: {name} is a value, not a section")
    section[key[-1]] = value


def _hint(kind: Any, key: Sequence[str]) -> Any:
    """The type of a setting by its dotted name; Any where there is no such setting."""
    for name in key:
        section = _present(kind)
        kind = get_type_hints(section).get(name, Any) if dataclasses.is_dataclass(section) else Any
    return kind


def _present(hint: Any) -> Any:
    """The type of a setting when it is not absent: X of X | None, anything else as it is."""
    options = get_args(hint)
    if NoneType in options and len(options) == 2:
        return options[0] if options[1] is NoneType else options[1]
    return hint


def _refuse_unknown(document: Mapping[str, Any], kind: Any, path: Path, above: tuple[str, ...]) -> None:
    known = get_type_hints(kind)
    for name, value in document.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise RunMisconfigured(f"{path}: unknown setting {'.'.join((*above, name))}; {meant}")
        section = _present(known[name])
        if dataclasses.is_dataclass(section) and isinstance(value, dict):
            _refuse_unknown(value, section, path, (*above, name))


def _told(error: Exception, kind: Any) -> str:
    """The error with the setting's dotted name in front: `grpo.steps: Expected int, got str`."""
    text = str(error)
    place = _PLACE.search(text)
    message = _PLACE.sub("", text).replace("`object", "`section").replace("`", "")
    if place is None or not place[1]:
        return message
    wanted = _present(_hint(kind, place[1].split(".")))
    choices = f"; it must be one of {', '.join(get_args(wanted))}" if get_origin(wanted) is Literal else ""
    return f"{place[1]}: {message}{choices}"


def _without_none(value: Any) -> Any:
    """TOML has no null: a setting that is None is left out, which reads back as its default."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return value
