"""Small files and copies: there in full or not at all, and every error says whose fault it is."""

import errno
import os
from pathlib import Path

import pytest

from bitbudget.checkpoint.write import copy_atomic, write_atomic
from bitbudget.errors import InputError, OutputError


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="the folder does not exist"):
        write_atomic(tmp_path / "absent" / "config.json", b"{}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not permitted"):
        write_atomic(tmp_path / "config.json", b"{}")


def test_write_atomic_replaces(tmp_path):
    path = tmp_path / "config.json"
    for content in (b"first, and longer", b"second", b""):
        write_atomic(path, content)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [content]


def test_write_atomic_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="the disk is full"):
        write_atomic(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_copy_follows_links_and_streams(tmp_path, monkeypatch):
    monkeypatch.setattr("bitbudget.checkpoint.atomic.CHUNK_BYTES", 7)
    (tmp_path / "blob").write_bytes(bytes(range(100)))
    (tmp_path / "tokenizer.json").symlink_to("blob")
    copy_atomic(tmp_path / "tokenizer.json", tmp_path / "copy.json")
    assert not (tmp_path / "copy.json").is_symlink()
    assert (tmp_path / "copy.json").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("source", ["absent", "."])
def test_copy_of_what_cannot_be_read_is_the_inputs_fault(source, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        copy_atomic(tmp_path / source, tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "ours", b"")
    assert mode(tmp_path / "ours") == mode(tmp_path / "plain")


def mode(path: Path) -> int:
    return path.stat().st_mode


def test_file_is_synced_before_and_its_folder_after_the_renaming(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("renamed")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "config.json", b"{}")
    assert calls == [str(tmp_path / ".config.json.partial"), "renamed", str(tmp_path)]


def test_ctrl_c_while_the_file_is_made_leaves_nothing(tmp_path, monkeypatch):
    opened = os.open

    def interrupted(*arguments):
        opened(*arguments)  # the system has made the file when the signal is looked at
        raise KeyboardInterrupt

    monkeypatch.setattr("bitbudget.checkpoint.atomic.os.open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"content")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
