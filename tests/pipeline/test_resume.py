"""Runs that are killed, repeated, changed or out of space: the same command goes on to the same bytes, or says why not."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from bitbudget.checkpoint.journal import JOURNAL_NAME
from bitbudget.data import default_text_file
from bitbudget.errors import InputError, OutputError, VerificationError
from bitbudget.methods import LlmMq
from bitbudget.pipeline import api
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.progress import Silent
from bitbudget.pipeline.waves import sequence_bytes

METHOD = {"bits": (3, 4, 8), "groups": (32,), "outliers": ("0",), "tables": ("int4:g32", "int8:g32")}
BITS = 5.0
SHARD = 300_000
BUDGET = Budget(bits=BITS)
KILLING = Path(__file__).with_name("killing.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.make_model("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, shards=2, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(model: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and verified folder, whose measurements are in `cache`."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    by_budget(model, cache, folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """Of `finished`, with its times, as a folder that is looked at anew has them."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


class Noting(Silent):
    """Notes the stages, and stops the run like Ctrl-C at the start of one, or behind some steps of it."""

    def __init__(self, stop: str | None = None, steps: int = 0) -> None:
        self.stages: list[str] = []
        self.stop, self.left = stop, steps

    def start(self, stage: str, total: int) -> None:
        self.stages.append(stage)
        self._step()

    def advance(self, amount: int) -> None:
        self._step()

    def _step(self) -> None:
        if self.stop is not None and self.stages[-1].startswith(self.stop):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt


def by_budget(
    model: Path, cache: Path, output: Path, budget: Budget = BUDGET, progress: Silent | None = None, **other: Any
) -> dict[str, Any]:
    scratch = {"scratch_bytes": other.pop("scratch")} if "scratch" in other else {}
    options = Options(LlmMq(**METHOD), other.pop("effort", "fast"), cache=cache, **scratch)
    shard = other.pop("max_shard_bytes", SHARD)
    return quantize(
        model, budget, output, options=options, device="cpu", max_shard_bytes=shard, progress=progress, **other
    )


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def leftovers(cache: Path) -> list[str]:
    """Files of the cache that only an unfinished run needs."""
    passing = ("hidden", "gradients")
    files = (path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    return [str(path) for path in files if {*path.parts} & {*passing} or path.name.endswith(".partial")]


def killed(tmp_path: Path, model: str, kills: int, method: dict[str, Any], bits: float) -> None:
    """An undisturbed run and a killed one, each with a cache of its own, and what they leave."""
    asked = {"model": model, "bits": bits, "shard": SHARD, "method": method, "seed": 0}
    moments: list[Any] = []
    for name, count in (("whole", 0), ("cut", kills)):
        folder = tmp_path / name
        settings = asked | {"output": str(folder / "out"), "cache": str(folder / "cache"), "kills": count, "moments": moments}
        folder.mkdir()
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        ran = subprocess.run(
            [sys.executable, KILLING, tmp_path / "settings.json"], capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        moments = moments or json.loads(ran.stdout)
    assert ran.stderr.count(" killed\n") == kills, ran.stderr
    assert contents(tmp_path / "cut" / "out") == contents(tmp_path / "whole" / "out")
    assert contents(tmp_path / "cut" / "cache").keys() == contents(tmp_path / "whole" / "cache").keys()
    for name in ("whole", "cut"):
        assert leftovers(tmp_path / name / "cache") == []


def test_killed_three_times(model: Path, tmp_path: Path) -> None:
    killed(tmp_path, str(model), 3, METHOD, BITS)


@pytest.mark.slow
def test_the_demo_killed_ten_times(tmp_path: Path) -> None:
    killed(tmp_path, "demo", 10, {}, 3.5)


def test_two_runs_without_a_common_cache_are_the_same_to_the_byte(model: Path, finished: Path, tmp_path: Path) -> None:
    by_budget(model, tmp_path / "cache", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished)
    record = json.loads((finished / "bitbudget.json").read_text())
    assert record["verification"]["passed"] and record["request"]["budget"] == {"bits": BITS}
    for place in (tmp_path, model, finished.parent, Path.cwd()):
        assert str(place) not in json.dumps(record), "no path in the record"


def test_a_run_stopped_in_every_stage_goes_on_where_it_stopped(model: Path, finished: Path, tmp_path: Path) -> None:
    cache, output = tmp_path / "cache", tmp_path / "out"
    stops = [("calibrate", 2), ("score", 0), ("score", 2), ("guard: compare", 1), ("quantize", 9), ("check", 0)]
    over: set[str] = set()
    for stage, steps in stops:
        running, kept = Noting(stage, steps), times(output) if output.is_dir() else {}
        with pytest.raises(KeyboardInterrupt):
            by_budget(model, cache, output, progress=running)
        assert not over & {*running.stages}, (stage, "begins what was over", running.stages)
        over |= {name for name in running.stages if not name.startswith(stage.partition(":")[0])}
        shards = [name for name in kept if name.endswith(".safetensors")]
        assert all(times(output)[name] == kept[name] for name in shards)
    last = Noting()
    by_budget(model, cache, output, progress=last)
    assert last.stages[0] == "check", "only the verification was left"
    assert contents(output) == contents(finished)
    assert leftovers(cache) == []


def test_a_finished_run_is_done_at_once(model: Path, finished: Path, copy: Path, tmp_path: Path) -> None:
    before, running = times(copy), Noting()
    record = by_budget(model, tmp_path / "another cache", copy, progress=running)
    assert running.stages == [] and times(copy) == before
    assert record == json.loads((copy / "bitbudget.json").read_text())
    assert not (tmp_path / "another cache").exists()


def test_what_was_not_verified_is_verified(model: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    by_budget(model, cache, tmp_path, verify=False)
    assert "Not verified yet" in (tmp_path / "README.md").read_text()
    running = Noting()
    by_budget(model, cache, tmp_path, progress=running)
    assert running.stages[0] == "check"
    assert contents(tmp_path) == contents(finished)


def test_a_journal_that_a_kill_left_in_a_finished_folder_goes(model: Path, cache: Path, copy: Path) -> None:
    (copy / JOURNAL_NAME).write_text('{"inputs": {}, "version": 2}\n')
    by_budget(model, cache, copy)
    assert not (copy / JOURNAL_NAME).exists()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "budget": ({"budget": Budget(bits=4.5)}, "budget (there bits 5.0, here bits 4.5)"),
    "effort": ({"effort": "normal"}, "effort"),
    "shards": ({"max_shard_bytes": 10**6}, "max shard size (there 300000, here 1000000)"),
    "scratch": ({"scratch": 2**20}, "sequences of the first wave"),
    "text": ({"text": "changed"}, "text; text's name (there books (packaged), here text.jsonl)"),
}


@pytest.fixture(scope="module")
def unfinished(model: Path, cache: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(KeyboardInterrupt):
        by_budget(model, cache, folder, progress=Noting("quantize", 9))
    return folder


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("case", OTHERS)
def test_another_command_is_refused_before_any_work(
    model: Path, tmp_path: Path, case: str, state: str, request: pytest.FixtureRequest
) -> None:
    output, (other, words) = request.getfixturevalue(state), OTHERS[case]
    if "text" in other:
        text = tmp_path / "text.jsonl"
        lines = default_text_file().read_text().splitlines()
        text.write_text("\n".join(lines[:-1]) + "\n")
        other = {"text": text}
    before, running = contents(output), Noting()
    with pytest.raises(OutputError) as refusal:
        by_budget(model, tmp_path / "cache", output, progress=running, **other)
    assert words in str(refusal.value)
    assert running.stages == [] and contents(output) == before


def test_changed_weights_are_refused_by_the_name_of_their_file(
    model: Path, cache: Path, finished: Path, unfinished: Path, copy: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(model, tmp_path / model.name))
    first = sorted(changed.glob("*.safetensors"))[0]
    later = (copy / "bitbudget.json").stat().st_mtime_ns + 10**9
    os.utime(first, ns=(later, later))
    for output in (copy, unfinished):
        before = contents(output)
        with pytest.raises(OutputError, match=first.name):
            by_budget(changed, cache, output)
        assert contents(output) == before


@pytest.mark.parametrize("damage", ["gone", "short", "copied"])
def test_a_finished_folder_that_was_damaged_is_no_finished_run(model: Path, cache: Path, copy: Path, damage: str) -> None:
    file = copy / "tokenizer.json" if damage == "copied" else next(copy.glob("*.safetensors"))
    if damage == "short":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.unlink()
    with pytest.raises(OutputError, match=f"damaged since: {file.name}"):
        by_budget(model, cache, copy)


def test_a_failed_verification_is_repeated(model: Path, cache: Path, copy: Path) -> None:
    record = json.loads((copy / "bitbudget.json").read_text())
    record["verification"]["passed"] = False
    (copy / "bitbudget.json").write_text(json.dumps(record))
    file = next(copy.glob("*.safetensors"))
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(VerificationError, match="not what was written"):
        by_budget(model, cache, copy)


@pytest.mark.parametrize("missing", ["grams/1.safetensors", "scales/0.safetensors", "scores/*/*/model.layers.1.*q_proj*"])
def test_a_measurement_that_is_gone_is_made_again(
    model: Path, cache: Path, finished: Path, tmp_path: Path, missing: str
) -> None:
    own = Path(shutil.copytree(cache, tmp_path / "cache"))
    wave = next(own.glob("*/scores/*/*"))
    wanted = {path: path.read_bytes() for path in own.glob(f"*/{missing}")}
    assert wanted and wave.is_dir()
    for path in wanted:
        path.unlink()
    by_budget(model, own, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished)
    assert {path: path.read_bytes() for path in wanted} == wanted


def test_the_cache_has_no_room(model: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
        full.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match=r"take [\d,]+ bytes in the cache folder, and .* has 200,000 bytes free.*--scratch"):
            by_budget(model, tmp_path / "cache", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes; it can be made larger by asking again."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted: list[bool] = []

    def made(nbytes: int) -> Path:
        options = f"size={nbytes}" + (",remount" if mounted else "")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("a file system can be mounted by the superuser only")
        mounted.append(True)
        return folder

    yield made
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a checkpoint that was read may still be open


def test_a_full_disk_is_told_and_the_run_goes_on_after_room_is_made(
    model: Path, cache: Path, finished: Path, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in finished.iterdir())
    disk = small_disk(size // 4)
    with pytest.raises(OutputError, match=r"takes [\d,]+ bytes, and .* has [\d,]+ bytes free"):
        by_budget(model, cache, disk / "out")
    disk = small_disk(size + 2**18)
    ballast = disk / "ballast"
    with pytest.raises(OutputError, match=r"the disk is full\. \d+ bytes are needed, \d+ bytes are free"):
        by_budget(model, cache, disk / "out", progress=Filling(ballast))
    assert (disk / "out" / JOURNAL_NAME).is_file()
    ballast.unlink()
    by_budget(model, cache, disk / "out")
    assert contents(disk / "out") == contents(finished)


def test_a_full_cache_is_told_and_the_run_goes_on_after_room_is_made(
    model: Path, finished: Path, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = small_disk(2**26)
    ballast = disk / "ballast"
    with pytest.raises(OutputError, match=r"the disk is full\. \d+ bytes are needed, \d+ bytes are free"):
        by_budget(model, disk / "cache", tmp_path / "out", progress=Filling(ballast, "score", 3))
    assert not (tmp_path / "out").exists()
    scores = {path: path.stat().st_mtime_ns for path in disk.glob("cache/*/scores/*/*/*.safetensors")}
    assert scores, "finished layers of an unfinished wave stay"
    ballast.unlink()
    running = Noting()
    by_budget(model, disk / "cache", tmp_path / "out", progress=running)
    assert not any(name.startswith("calibrate") for name in running.stages)
    assert {path: path.stat().st_mtime_ns for path in scores} == scores
    assert contents(tmp_path / "out") == contents(finished)


class Filling(Noting):
    """Fills the disk in the middle of a stage."""

    def __init__(self, ballast: Path, stage: str = "quantize", steps: int = 5) -> None:
        super().__init__(stage, steps)
        self.ballast = ballast

    def _step(self) -> None:
        try:
            super()._step()
        except KeyboardInterrupt:
            self.stop = None
            with self.ballast.open("wb", buffering=0) as file:
                try:
                    for size in (2**20, 2**12):
                        while file.write(bytes(size)) == size:
                            pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC


def test_a_small_scratch_limit_makes_several_waves(model: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    source = api.open_source(model)
    limit = 4 * sequence_bytes(source, torch.float32)
    running = Noting()
    record = by_budget(model, tmp_path / "cache", tmp_path / "out", progress=running, scratch=limit)
    waves = [name for name in running.stages if name.startswith("score")]
    assert len(waves) == 4 and waves[0].endswith(" 0-4") and waves[-1].endswith(" 12-16")
    assert leftovers(tmp_path / "cache") == []
    whole = json.loads((finished / "bitbudget.json").read_text())
    assert record["plan"]["settings"]["sequences"] == whole["plan"]["settings"]["sequences"] == 16
    losses = [one["verification"]["measurement"]["kl"] for one in (record, whole)]
    assert losses[0] < 1.5 * losses[1], "scales and ranges come from fewer sequences, scores from as many"
    with pytest.raises(InputError, match="too small"):
        by_budget(model, tmp_path / "cache", tmp_path / "other", scratch=limit // 4 - 1)
    assert not (tmp_path / "other").exists()
