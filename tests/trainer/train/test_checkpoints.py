"""A checkpoint counts only when it is whole, and dropping one never leaves half of one that counts."""

import os
import shutil
from pathlib import Path

import pytest

from cacherl.train import checkpoints
from cacherl.train.checkpoints import checkpoint_step, drop_old, last_checkpoint, mark_complete, whole_folder


def written(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "inner" / "weights").write_bytes(b"123")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_the_last_checkpoint_is_the_complete_one_of_the_highest_step(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    assert last_checkpoint(tmp_path) is None
    written(tmp_path, 9)
    latest = written(tmp_path, 10)
    written(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert last_checkpoint(tmp_path) == latest
    assert checkpoint_step(latest) == 10


def test_another_folder_has_no_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint-"):
        checkpoint_step(tmp_path / "model")


def test_old_ones_and_torn_ones_before_the_latest_go_and_a_later_one_being_written_stays(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        written(tmp_path, step, complete=step != 15)
    written(tmp_path, 25, complete=False)
    (tmp_path / "model").mkdir()
    drop_old(tmp_path, keep=2)
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-20", "checkpoint-25", "model"}
    drop_old(tmp_path, keep=1)
    assert names(tmp_path) == {"checkpoint-20", "checkpoint-25", "model"}


def test_nothing_is_dropped_as_long_as_nothing_is_complete(tmp_path: Path) -> None:
    written(tmp_path, 5, complete=False)
    drop_old(tmp_path, keep=1)
    assert names(tmp_path) == {"checkpoint-5"}
    with pytest.raises(ValueError, match="keep"):
        drop_old(tmp_path, keep=0)


def test_a_checkpoint_that_is_being_dropped_no_longer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (5, 10):
        written(tmp_path, step)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_old(tmp_path, keep=1)
    shutil.move(tmp_path / "checkpoint-10", tmp_path / "aside")
    assert last_checkpoint(tmp_path) is None


def test_the_marker_is_put_after_everything_else_has_reached_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = written(tmp_path, 5, complete=False)
    synced: list[tuple[str, bool]] = []
    plain = os.fsync

    def noted(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        synced.append((name, (checkpoint / checkpoints.MARKER).exists()))
        plain(handle)

    monkeypatch.setattr(os, "fsync", noted)
    mark_complete(checkpoint)
    assert {name for name, marked in synced if not marked} == {"weights", "inner", "checkpoint-5"}
    assert [name for name, marked in synced if marked] == ["complete", "checkpoint-5", tmp_path.name]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder) as fresh:
        (fresh / "a").write_text("old")
        assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as fresh:
        (fresh / "b").write_text("torn")
        raise KeyboardInterrupt
    assert names(folder) == {"a"}
    with whole_folder(folder) as fresh:
        assert names(fresh) == set()  # nothing of the torn one
        (fresh / "b").write_text("new")
    assert names(folder) == {"b"}
    assert names(tmp_path) == {"model"}
