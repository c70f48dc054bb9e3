"""The journal: what is noted survives any crash, what is not is done again, and no run continues another one."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitbudget.checkpoint.journal import Journal
from bitbudget.errors import OutputError

PRINT = {"budget": "bits 3.5", "text": "ab" * 32}
ONE, TWO = {"a": "00" * 32}, {"b": "11" * 32, "c": "22" * 32}


@pytest.fixture
def half_done(tmp_path) -> Path:
    """A folder whose run has finished two shards and was then stopped."""
    with Journal.open(tmp_path, PRINT) as journal:
        for name, hashes in (("1.safetensors", ONE), ("2.safetensors", TWO)):
            (tmp_path / name).write_bytes(b"shard")
            journal.record(name, hashes)
    return tmp_path


def refusal(folder: Path, inputs: dict[str, str] = PRINT) -> str:
    with pytest.raises(OutputError) as caught:
        Journal.open(folder, inputs)
    assert str(folder) in str(caught.value) and "-o" in str(caught.value)
    return str(caught.value)


def finished(folder: Path) -> dict[str, dict[str, str]]:
    with Journal.open(folder, PRINT) as journal:
        return journal.finished


def test_fresh(tmp_path):
    with Journal.open(tmp_path, PRINT) as journal:
        assert journal.finished == {}
    assert json.loads((tmp_path / "journal.jsonl").read_text()) == {"inputs": PRINT, "version": 2}


def test_resumed(half_done):
    lines = [json.loads(line) for line in (half_done / "journal.jsonl").read_text().splitlines()]
    assert lines[1] == {"shard": "1.safetensors", "nbytes": 5, "tensors": ONE}
    assert finished(half_done) == {"1.safetensors": ONE, "2.safetensors": TWO}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (PRINT | {"budget": "bits 4"}, "differs from this one: budget (there bits 3.5, here bits 4). Give"),
        (PRINT | {"text": "cd" * 32}, "differs from this one: text. Give"),
        (PRINT | {"budget": "bits 4", "text": "cd" * 32}, "budget (there bits 3.5, here bits 4); text."),
        (PRINT | {"choice": "int4"}, "choice (there none, here int4)"),
        ({"budget": "bits 3.5"}, "text (only there)"),
        (PRINT | {"scales": "ef" * 32}, "scales (only here)"),
    ],
)
def test_other_inputs_are_refused_by_name_and_nothing_changes(half_done, inputs, words):
    before = (half_done / "journal.jsonl").read_bytes()
    message = refusal(half_done, inputs)
    assert words in message and "same command" in message
    assert (half_done / "journal.jsonl").read_bytes() == before


def test_the_inputs_of_an_unfinished_run_can_be_asked_for(half_done, tmp_path):
    assert Journal.inputs_of(half_done) == PRINT
    assert Journal.inputs_of(tmp_path / "absent") is None
    os.truncate(half_done / "journal.jsonl", 20)
    assert Journal.inputs_of(half_done) is None


@pytest.mark.parametrize("first", [b'{"version": 2}', b'{"version": 2, "inputs": {"budget": 3.5}}', b"{}"])
def test_a_first_line_without_inputs_is_refused(half_done, first):
    path = half_done / "journal.jsonl"
    path.write_bytes(b"\n".join([first, *path.read_bytes().splitlines()[1:], b""]))
    assert "damaged: line 1" in refusal(half_done)


@pytest.mark.parametrize("version", [1, 3])
def test_another_version_is_refused(half_done, version):
    path = half_done / "journal.jsonl"
    path.write_text(path.read_text().replace('"version": 2', f'"version": {version}'))
    assert f"has version {version}" in refusal(half_done)


@pytest.mark.parametrize("torn", range(1, 40))
def test_torn_last_line_is_dropped_and_the_next_line_stands_alone(torn, half_done):
    path = half_done / "journal.jsonl"
    os.truncate(path, path.stat().st_size - torn)
    with Journal.open(half_done, PRINT) as journal:
        assert journal.finished == {"1.safetensors": ONE}
        journal.record("2.safetensors", TWO)
    assert finished(half_done) == {"1.safetensors": ONE, "2.safetensors": TWO}


@pytest.mark.parametrize("length", range(38))
def test_torn_first_line_is_a_fresh_start(length, half_done):
    os.truncate(half_done / "journal.jsonl", length)
    assert finished(half_done) == {}
    assert finished(half_done) == {}


@pytest.mark.parametrize("tail", [bytes(100), bytes(99) + b"\n", b'{"shard": "3\n', b"\xff\n"])
def test_garbage_at_the_end_is_dropped(tail, half_done):
    with open(half_done / "journal.jsonl", "ab") as stream:
        stream.write(tail)
    assert set(finished(half_done)) == {"1.safetensors", "2.safetensors"}
    assert not (half_done / "journal.jsonl").read_bytes().endswith(tail)


@pytest.mark.parametrize("line", [b"garbage", b"[]", b"{}", b'{"shard": 1, "nbytes": 5, "tensors": {}}'])
def test_damage_in_the_middle_is_refused(line, half_done):
    path = half_done / "journal.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, lines[2], b""]))
    assert "damaged: line 2" in refusal(half_done)


def test_first_line_of_something_else_is_refused(half_done):
    path = half_done / "journal.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes())
    assert "damaged: line 1" in refusal(half_done)


def test_a_shard_that_is_gone_or_changed_length_is_not_finished(half_done):
    (half_done / "1.safetensors").unlink()
    (half_done / "2.safetensors").write_bytes(b"longer than it was")
    assert finished(half_done) == {}


def test_a_shard_recorded_twice_counts_as_recorded_last(half_done):
    with Journal.open(half_done, PRINT) as journal:
        journal.record("1.safetensors", TWO)
    assert finished(half_done)["1.safetensors"] == TWO


def test_removed_at_the_end(half_done):
    journal = Journal.open(half_done, PRINT)
    journal.close_and_remove()
    journal.close()
    assert not (half_done / "journal.jsonl").exists()


def test_two_runs_at_once_are_refused(half_done):
    with Journal.open(half_done, PRINT):
        assert "Another process is writing" in refusal(half_done)
    assert set(finished(half_done)) == {"1.safetensors", "2.safetensors"}


def test_every_record_is_synced(tmp_path, monkeypatch):
    (tmp_path / "1.safetensors").write_bytes(b"shard")
    with Journal.open(tmp_path, PRINT) as journal:
        synced = []
        monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "journal.jsonl").read_bytes()))
        journal.record("1.safetensors", ONE)
    assert len(synced) == 1 and b"1.safetensors" in synced[0]


def test_full_disk(half_done, monkeypatch):
    with Journal.open(half_done, PRINT) as journal:
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OutputError, match="the disk is full"):
            journal.record("1.safetensors", TWO)
        assert journal.finished["1.safetensors"] == ONE


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        Journal.open(tmp_path / "absent", PRINT)


def test_recording_a_shard_that_is_not_there(tmp_path):
    with Journal.open(tmp_path, PRINT) as journal, pytest.raises(OutputError, match="absent.safetensors"):
        journal.record("absent.safetensors", ONE)


KILLED = """
import json, os, signal, sys, torch
from pathlib import Path
from bitbudget.checkpoint.journal import Journal
from bitbudget.checkpoint.write import ShardWriter, plan_shards
from bitbudget.storage.tensors import TensorSpec
folder = Path(sys.argv[1])
shards = plan_shards([(TensorSpec(name, torch.float32, (1000,)),) for name in "abc"], 4000)
with Journal.open(folder, json.loads(sys.argv[2])) as journal:
    for shard in shards:
        with ShardWriter(folder, shard) as writer:
            if shard is shards[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            hashes = {spec.name: writer.write(spec.name, torch.ones(1000)) for spec in shard.specs}
        journal.record(shard.filename, hashes)
"""


def test_killed_process_keeps_what_it_finished_and_shows_no_half_file(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), json.dumps(PRINT)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model-00001-of-00003.safetensors"]
    assert list(finished(tmp_path)) == ["model-00001-of-00003.safetensors"]
