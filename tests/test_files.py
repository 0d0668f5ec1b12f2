"""Results of commands: where they go, what they leave, and what is told before the work."""

import errno
import functools
import os
import shutil
import zipfile

import pytest

from torchreid_autoreid.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from torchreid_autoreid.errors import UserError, line_of_the_machine
from torchreid_autoreid.files import (
    append_line,
    check_output,
    forget_half_written,
    read_json,
    write_atomically,
    write_output,
)
from torchreid_autoreid.search.truth import TruthSet


def write(text):
    def to(name):
        with open(name, "w") as file:
            file.write(text)

    return to


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "b")
    for text in ("one", "two"):
        write_output("--json", tmp_path / "a", write(text))
        assert (tmp_path / "disk" / "b").read_text() == text
    assert (tmp_path / "a").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["b"]


def link_to_pipe(path):
    pipe = path.parent.with_name(f"{path.parent.name}-pipe")  # no device of the machine: a mistake would replace it
    os.mkfifo(pipe)
    path.symlink_to(pipe)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (os.mkfifo, "it is a pipe or a device"),
        (os.mkdir, "Is a directory"),
        (link_to_pipe, "it is a pipe or a device"),
        (lambda path: os.symlink(path, path), "a: "),  # a circle
        (lambda path: os.symlink("/no/where", path), "No such file or directory"),
    ],
)
def test_what_is_no_ordinary_file_is_left_alone(tmp_path, make, text):
    path = tmp_path / "a"
    make(path)
    before = path.lstat()
    for call in (check_output, lambda *words: write_output(*words, write("x"))):
        with pytest.raises(UserError, match=f"cannot write --output .*{text}"):
            call("--output", path)
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_result_does_not_take_the_place_of_an_input(tmp_path):
    (tmp_path / "w.pth").write_text("weights")
    (tmp_path / "link").symlink_to(tmp_path / "w.pth")
    for path in (tmp_path / "w.pth", tmp_path / "link", tmp_path / "." / "w.pth"):
        with pytest.raises(UserError, match="it is the file of --weights, given for something else too"):
            check_output("--output", path, {"--features": None, "--weights": str(tmp_path / "w.pth")})


def test_what_a_killed_command_left_goes_and_what_is_being_written_stays(tmp_path):
    left = tmp_path / ".a.json.abc123.part"
    other = tmp_path / ".b.json.abc123.part"
    for path in (left, other):
        path.write_text("half")

    def while_writing(name):
        forget_half_written(tmp_path)
        assert os.path.exists(name)
        write("whole")(name)

    check_output("--json", tmp_path / "a.json")
    assert not left.exists()
    assert other.exists()  # of another file: its own next command removes it
    write_atomically(tmp_path / "c.json", while_writing)
    assert sorted(os.listdir(tmp_path)) == ["c.json"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(5, "Input/output error", "log/history.jsonl"), "the file system of log/history.jsonl does not answer"),
        (OSError(116, "Stale file handle", "x"), "go on with --resume when it is back"),
        (PermissionError(13, "Permission denied", "log/a"), "cannot use log/a: Permission denied; give another path"),
        (OSError(24, "Too many open files"), "too few file descriptors"),
        (RuntimeError("unable to open shared memory object </torch_1_2> in read-write mode: Too many open files (24)"),
         "too few file descriptors"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "make /dev/shm larger"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "starts no more processes"),
        (RuntimeError("can't start new thread"), "starts no more threads"),
        (ImportError("libonnx.so: failed to map segment from shared object"), "out of memory"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (RuntimeError("could not create a primitive"), "out of memory (could not create a primitive)"),
        (OSError(28, "No space left on device", "a"), "cannot write a: No space left on device; make room"),
        (OSError(13, "Permission denied", b"a/events"), "cannot use a/events: Permission denied; give another path"),
        (OSError(30, "Read-only file system", "a"), "write a: Read-only file system; make its file system writable"),
        (OSError(24, "Too many open files", b"a/events"), "too few file descriptors (Too many open files: a/events)"),
        (OSError(22, "Invalid argument", "a:b"), "cannot use a:b: Invalid argument; give another path"),
    ],
)  # fmt: skip
def test_what_the_machine_says_is_a_line_with_a_way_out(error, text):
    line = line_of_the_machine(error)
    assert text in line
    assert ";" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("x"), RuntimeError("shape"), KeyError("memory"), OSError("odd")),
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
    ],
)
def test_a_fault_of_the_program_is_not_the_machines(error):
    assert line_of_the_machine(error) == ""


def refusing(name, number, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refuse)


@pytest.mark.parametrize("name", ["fsync", "chmod", "replace"])
def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(tmp_path, monkeypatch, name):
    path = tmp_path / "a.json"
    path.write_text("old")
    refusing(name, errno.EIO, monkeypatch)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomically(path, write("new"))
    assert line_of_the_machine(caught.value).startswith(f"the file system of {path} does not answer")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_is_read_for_a_file_keeps_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "a", functools.partial(shutil.copyfile, tmp_path / "missing"))
    assert caught.value.filename == str(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "number"),
    [("fsync", errno.EINVAL), ("fsync", errno.EOPNOTSUPP), ("chmod", errno.EPERM), ("chmod", errno.EOPNOTSUPP)],
)
def test_a_file_system_without_rights_or_a_way_to_sync_will_do(tmp_path, monkeypatch, name, number):
    refusing(name, number, monkeypatch)
    write_atomically(tmp_path / "a", write("whole"))
    append_line(tmp_path / "a", " and more")
    assert (tmp_path / "a").read_text() == "whole and more\n"


@pytest.mark.parametrize("method", ["__init__", "testzip"])
def test_a_checkpoint_that_cannot_be_read_is_not_called_torn(tmp_path, monkeypatch, method):
    save_checkpoint({"epoch": 1}, tmp_path / "checkpoint.pth")

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, method, refuse)
    for read in (lambda: load_checkpoint(tmp_path / "checkpoint.pth", ()), lambda: newest_checkpoint(tmp_path)):
        with pytest.raises(OSError, match="Input/output error") as caught:
            read()
        assert line_of_the_machine(caught.value).startswith(f"the file system of {tmp_path / 'checkpoint.pth'} does")


def test_a_line_that_does_not_reach_the_disk_names_its_file(tmp_path, monkeypatch):
    refusing("fsync", errno.ENOSPC, monkeypatch)
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(tmp_path / "history.jsonl", "{}")
    assert caught.value.filename == str(tmp_path / "history.jsonl")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "make room, then go on"),
        (errno.EIO, "go on with --resume when its file system is back"),
        (errno.EROFS, "make its file system writable"),
        (errno.EACCES, "change its rights"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_says_what_would_help(tmp_path, monkeypatch, number, fix):
    save_checkpoint({}, tmp_path / "checkpoint.pth")
    refusing("replace", number, monkeypatch)
    with pytest.raises(UserError, match=rf"cannot write the checkpoint .*is kept as .*; {fix}"):
        save_checkpoint({"epoch": 2}, tmp_path / "checkpoint.pth")
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "checkpoint.pth", ()) == {}


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no ordinary file"):
        read_json(tmp_path / "pipe", 100)
    with pytest.raises(UserError, match="no ordinary file"):
        TruthSet.load(tmp_path / "pipe")
