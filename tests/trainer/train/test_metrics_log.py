"""A resumed log reads as if the run had never been killed."""

import json
import math
from pathlib import Path

import pytest

from cacherl.train.metrics_log import MetricsLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "sft.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write({"step": step, "text": "Zoë\u2028"})
    return path


def test_a_run_that_goes_on_drops_what_was_written_after_its_checkpoint(path: Path) -> None:
    with MetricsLog(path, after_step=3) as log:
        log.write({"step": 4})
    assert steps(path) == [1, 2, 3, 4]


def test_a_half_written_last_line_goes_even_where_it_could_be_read(path: Path) -> None:
    for torn in ('{"step": 3, "lo', '{"step": 3}'):
        path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
        with MetricsLog(path, after_step=3) as log:
            log.write({"step": 3})
        assert steps(path) == [1, 2, 3]


def test_a_run_from_the_start_begins_an_empty_file(path: Path) -> None:
    MetricsLog(path).close()
    assert path.read_text() == ""


def test_going_on_without_the_old_file_begins_one(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "new.jsonl", after_step=7) as log:
        log.write({"step": 8})
    assert steps(tmp_path / "new.jsonl") == [8]


def test_what_json_cannot_say_becomes_null_at_any_depth(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"loss": math.nan, "by_tier": {"exact": math.inf, "miss": 0.5}})
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"loss": None, "by_tier": {"exact": None, "miss": 0.5}}


def test_a_log_without_a_path_only_forgets() -> None:
    with MetricsLog(None, after_step=3) as log:
        log.write({"step": 4})
