"""Trackers get the numbers of each step and nothing else; a library that is not there is told by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cacherl.errors import RunMisconfigured
from cacherl.train.trackers import flat, open_trackers

METRICS = {"step": 3, "loss": 0.5, "tier_mix": {"exact": 4, "miss": 0}, "kl": None, "bad": float("nan"), "text": "x"}
NUMBERS = {"step": 3.0, "loss": 0.5, "tier_mix/exact": 4.0, "tier_mix/miss": 0.0}


class FakeLibrary:
    """wandb's and trackio's interface, as far as it is used."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.is_finished = False

    def init(self, **arguments: Any) -> None:
        self.started = arguments

    def log(self, numbers: Mapping[str, float], *, step: int) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.is_finished = True


def test_levels_are_joined_and_only_finite_numbers_are_kept() -> None:
    assert dict(flat(METRICS)) == NUMBERS
    assert dict(flat({"is_on": True})) == {}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_names_settings_and_numbers(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary()
    monkeypatch.setitem(sys.modules, name, library)
    trackers = open_trackers([name], project="p", run="r-grpo", folder=tmp_path, settings={"grpo": {"steps": 2}})
    trackers.log(3, METRICS)
    trackers.close()
    assert {key: library.started[key] for key in ("project", "name", "config")} == {
        "project": "p",
        "name": "r-grpo",
        "config": {"grpo": {"steps": 2}},
    }
    assert library.logged == [(3, NUMBERS)]
    assert library.is_finished


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setitem(sys.modules, "wandb", library)
    (tmp_path / "other").mkdir()
    started = []
    for folder in (tmp_path, tmp_path, tmp_path / "other"):
        open_trackers(["wandb"], project="p", run="r", folder=folder, settings={}).close()
        started.append((library.started["id"], library.started["resume"]))
    assert started[0] == started[1] != started[2]
    assert started[0][1] == "allow"


def test_tensorboard_shows_a_step_that_is_done_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for losses in ({1: 4.0, 2: 3.0, 3: 9.0}, {2: 2.0, 3: 1.0}):
        trackers = open_trackers(["tensorboard"], project="p", run="r", folder=tmp_path, settings={})
        for step, loss in losses.items():
            trackers.log(step, {"loss": loss})
        trackers.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(each.step, each.value) for each in read.Scalars("loss")] == [(1, 4.0), (2, 2.0), (3, 1.0)]


def test_tensorboard_writes_what_its_own_reader_finds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(["tensorboard"], project="p", run="r", folder=tmp_path, settings={})
    trackers.log(3, METRICS)
    trackers.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert {name: read.Scalars(name)[0].value for name in read.Tags()["scalars"]} == NUMBERS
    assert read.Scalars("loss")[0].step == 3


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_tracker_that_is_not_installed_is_told_with_what_to_install(
    name: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunMisconfigured, match=f"track.to names {name}, which is not installed: pip install {name}"):
        open_trackers([name], project="p", run="r", folder=tmp_path, settings={})


def test_no_tracker_is_fine(tmp_path: Path) -> None:
    trackers = open_trackers([], project="p", run="r", folder=tmp_path, settings={})
    trackers.log(1, METRICS)
    trackers.close()
