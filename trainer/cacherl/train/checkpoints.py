"""Checkpoints on disk that survive a kill at any moment: a folder counts only once its marker is there.

What lies inside a checkpoint is the affair of the loop that writes it. One writer a folder; with several processes the
main one marks and drops, after the others have written their share.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = "complete"
"""Empty file, written last: everything beside it has reached the disk."""
_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step; None without any, or where the folder is not there."""
    return max((each for each in _checkpoints(folder) if _is_complete(each)), key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """Optimizer steps that had been made when it was written. Raises ValueError for another folder's name.

    >>> checkpoint_step(Path("runs/sft/checkpoint-40"))
    40
    """
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named checkpoint-<step>")
    return int(match[1])


def mark_complete(checkpoint: Path) -> None:
    """From now on it is a checkpoint: what it holds reaches the disk first, then the marker does."""
    _sync(checkpoint)
    (checkpoint / MARKER).touch()
    _sync_one(checkpoint / MARKER)
    _sync_one(checkpoint)
    _sync_one(checkpoint.parent)


def drop_old(folder: Path, keep: int) -> None:
    """Remove complete checkpoints beyond the `keep` latest, and incomplete ones older than the latest complete one.

    A later incomplete one may be being written.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; without a checkpoint there is nothing to go on from")
    complete = sorted((each for each in _checkpoints(folder) if _is_complete(each)), key=checkpoint_step)
    if not complete:
        return
    latest = checkpoint_step(complete[-1])
    torn = [each for each in _checkpoints(folder) if not _is_complete(each) and checkpoint_step(each) < latest]
    for each in (*complete[:-keep], *torn):
        # The marker first: a kill in the middle of the rest must not leave half a checkpoint that counts.
        (each / MARKER).unlink(missing_ok=True)
        _sync_one(each)
        shutil.rmtree(each)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` as a whole, or not at all where filling it fails.

    An older `folder` stays until then; a kill between its leaving and the new one's coming leaves neither under the
    name, but never half of one.
    """
    fresh = folder.with_name(f"{folder.name}.part")
    old = folder.with_name(f"{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    _sync(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    _sync_one(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Complete or not, in no order."""
    return [each for each in folder.glob("checkpoint-*") if each.is_dir() and _NAME.fullmatch(each.name)]


def _is_complete(checkpoint: Path) -> bool:
    return (checkpoint / MARKER).is_file()


def _sync(folder: Path) -> None:
    """Everything in the folder reaches the disk, the folders' own entries included."""
    for path in (*folder.rglob("*"), folder):
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
