"""Results of commands: where they go, what they leave, and what is told before the work."""

import os

import pytest

from torchreid_autoreid.errors import UserError, line_of_the_machine
from torchreid_autoreid.files import check_output, forget_half_written, write_atomically, write_output


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


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (os.mkfifo, "it is a pipe or a device"),
        (os.mkdir, "Is a directory"),
        (lambda path: os.symlink("/dev/null", path), "it is a pipe or a device"),
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
    assert os.path.exists("/dev/null")
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
        (OSError(28, "No space left on device", "a"), "cannot write a: No space left on device; make room"),
        (OSError(13, "Permission denied", b"a/events"), "cannot use a/events: Permission denied; give another path"),
    ],
)  # fmt: skip
def test_what_the_machine_says_is_a_line_with_a_way_out(error, text):
    line = line_of_the_machine(error)
    assert text in line
    assert ";" in line
    assert "\n" not in line


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape"), KeyError("memory"), OSError("odd")])
def test_a_fault_of_the_program_is_not_the_machines(error):
    assert line_of_the_machine(error) == ""
