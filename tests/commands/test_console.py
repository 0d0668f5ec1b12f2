"""Options, exit statuses and the log that the commands share."""

import errno
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from multiprocessing import resource_sharer
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
from tqdm import tqdm

from torchreid_autoreid.checkpoint import save_checkpoint
from torchreid_autoreid.commands import console
from torchreid_autoreid.commands.console import Log, StepBar, quieten, run, setup_logging, stop_on_signals
from torchreid_autoreid.commands.options import base_parser, config_from_args, parse, told_once
from torchreid_autoreid.engine import run_folder
from torchreid_autoreid.engine.run_folder import bring_history, checkpoint_path, keep_earlier_run
from torchreid_autoreid.errors import Interrupted, SharedError, UserError

ROOT = Path(__file__).resolve().parents[2]


def config(*argv):
    return config_from_args(base_parser("A command.").parse_args(argv))


# -- options ----------------------------------------------------------------------------------------------------------


def test_options_are_torchreids():
    cfg = config(
        "--config-file",
        str(ROOT / "configs" / "autoreid_search.yaml"),
        *("-s", "market1501", "cuhk03", "--targets", "msmt17", "--transforms", "random_erase", "--root", "elsewhere"),
        *("train.max_epoch", "3", "search.order", "2"),
    )
    assert cfg.data.sources == ["market1501", "cuhk03"]
    assert cfg.data.targets == ["msmt17"]
    assert cfg.data.transforms == ["random_erase"]
    assert cfg.data.root == "elsewhere"
    assert (cfg.train.max_epoch, cfg.search.order, cfg.data.height) == (3, 2, 64)


def test_what_is_not_given_stays_as_it_is():
    cfg = config()
    assert (cfg.data.sources, cfg.data.root, cfg.data.transforms) == (["market1501"], "reid-data", ["random_flip"])


@pytest.mark.parametrize("option", ["-s", "-t", "--transforms"])
def test_pairs_may_follow_a_list_of_names(option):
    key = {"-s": "sources", "-t": "targets", "--transforms": "transforms"}[option]
    cfg = config(option, "one", "two", "train.max_epoch", "3", "use_gpu", "false")
    assert cfg.data[key] == ["one", "two"]
    assert (cfg.train.max_epoch, cfg.use_gpu) == (3, False)
    with pytest.raises(UserError, match=r"unknown key 'train\.max_epochs'"):
        config(option, "one", "train.max_epochs", "3")
    with pytest.raises(UserError, match=r"search\.order 2 has no effect in a training"):
        parse("train", [option, "one", "search.order", "2"])


@pytest.mark.parametrize(
    "words",
    [
        "--root x -s one two train.max_epoch 3 search.skip_cap -1",
        "train.max_epoch 3 search.skip_cap -1 --root x --sources one two",
        "train.max_epoch 3 --root=x search.skip_cap -1 -s one two",
        "-s one two train.max_epoch 3 --root x search.skip_cap -1",
        "train.max_epoch 3 -s one two search.skip_cap -1 --root x",
    ],
)
def test_options_are_understood_anywhere(words):
    cfg = config(*words.split())
    assert (cfg.data.root, cfg.data.sources, cfg.train.max_epoch, cfg.search.skip_cap) == ("x", ["one", "two"], 3, -1)


def test_a_tilde_is_the_home_in_options_and_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("data: {save_dir: ~/runs/a}\nautoreid: {genotype: ~/g.json}\n")
    cfg = config("--config-file=~/c.yaml", "autoreid.pretrained", "~/w.pth")
    assert cfg.data.save_dir == str(tmp_path / "runs" / "a")
    assert cfg.autoreid.genotype == str(tmp_path / "g.json")
    assert cfg.autoreid.pretrained == str(tmp_path / "w.pth")
    assert config("--root=~/d").data.root == str(tmp_path / "d")
    assert config("data.save_dir", "./~").data.save_dir == "./~"
    with pytest.raises(UserError, match=r"data\.save_dir: there is no home folder ~nobody0; write \./~nobody0/x for"):
        config("data.save_dir", "~nobody0/x")
    (tmp_path / "c.yaml").write_text(r'data: {save_dir: "a\0b"}')
    with pytest.raises(UserError, match=r"data\.save_dir: 'a\\x00b' has a NUL"):
        config("--config-file=~/c.yaml")


def test_a_tilde_of_nobody_in_an_option_gets_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        config("--root=~nobody0/x")
    assert caught.value.code == 2
    assert "there is no home folder ~nobody0" in capsys.readouterr().err


def test_unknown_options_exit_with_2(capsys):
    with pytest.raises(SystemExit) as caught:
        base_parser("A command.").parse_args(["--rooot", "x"])
    assert caught.value.code == 2
    assert "--rooot" in capsys.readouterr().err


def test_help_shows_the_examples_as_they_are(capsys):
    with pytest.raises(SystemExit) as caught:
        base_parser("A command.", "examples:\n  python do.py   --root DIR\n").parse_args(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "A command." in text
    assert "[OPTION ...] [KEY VALUE ...]" in text.splitlines()[0]
    assert "  python do.py   --root DIR\n" in text
    for word in (
        "--config-file",
        "--sources",
        "--targets",
        "--transforms",
        "--root",
        "KEY VALUE",
        "train.max_epoch 20",
    ):
        assert word in text


# -- exit statuses ----------------------------------------------------------------------------------------------------


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no file x;\n  give another"), 2, "error: no file x; give another\n"),
        (Interrupted("log/checkpoint.pth"), 130, "interrupted; resume with --resume log/checkpoint.pth\n"),
        (KeyboardInterrupt(), 130, "interrupted; what has been written is kept\n"),
    ],
)
def test_expected_endings_are_a_line_and_a_status(capsys, error, status, line):
    assert run(raising(error)) == status
    assert capsys.readouterr() == ("", line)


def test_a_fault_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))
    with pytest.raises(ValueError, match="plain"):  # not a UserError: not the user's mistake
        run(raising(ValueError("plain")))


@pytest.mark.parametrize(("given", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_may_give_its_own_status(given, status):
    assert run(lambda: given) == status


COMMAND = """
import sys
from torchreid_autoreid.commands.console import run
from torchreid_autoreid.commands.options import base_parser, config_from_args
sys.exit(run(lambda: config_from_args(base_parser("A command.").parse_args()) and None))
"""


def test_the_status_and_the_line_reach_the_shell():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMAND, "--config-file", "configs/autoreid_serch.yaml"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: no configuration file configs/autoreid_serch.yaml; did you mean configs/autoreid_search.yaml?\n"
    )


# -- the log ----------------------------------------------------------------------------------------------------------


@contextmanager
def log(folder):
    """Sets the log up, and gives its lines without their times. No fixture: pytest changes stdout after fixtures."""
    undo = setup_logging(folder / "new" / "folder", "search")
    try:
        yield lambda: [
            line[20:] for line in (folder / "new" / "folder" / "search.log").read_text(encoding="utf-8").splitlines()
        ]
    finally:
        undo()


def test_messages_prints_and_warnings_are_lines_once_here_and_once_there(tmp_path, capsys):
    with log(tmp_path) as lines:
        logging.getLogger("torchreid_autoreid.engine").info("a message")
        print("a\tprint")
        print("in ", end="")
        print("pieces", "\n")
        warnings.warn("take care", UserWarning, stacklevel=1)
        expected = ["a message", "a  print", "in pieces ", "UserWarning: take care"]
        assert lines() == expected
    assert capsys.readouterr().out.splitlines() == expected


def test_details_are_in_the_file_only(tmp_path, capsys):
    with log(tmp_path) as lines:
        logging.getLogger("torchreid_autoreid.engine").debug("a detail")
        assert lines() == ["a detail"]
    assert capsys.readouterr().out == ""


def test_progress_bars_stay_out_of_the_log(tmp_path, capsys):
    with log(tmp_path) as lines:
        for number in tqdm(range(3)):
            print("step", number)
        assert lines() == ["step 0", "step 1", "step 2"]
    assert "3/3" in capsys.readouterr().err


def on_screen(text):
    """The lines of a terminal that got this."""
    rows, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", text):
        if piece == "\x1b[A":
            row -= 1
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        else:
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
            column += len(piece)
    return [line.rstrip() for line in rows]


class ToTerminal(io.StringIO):
    """One of several streams of a terminal."""

    def __init__(self, written):
        super().__init__()
        self.written = written

    def write(self, text):
        self.written.append(text)
        return len(text)


def test_lines_stand_above_both_bars_and_nothing_of_these_is_left(monkeypatch):
    written = []
    monkeypatch.setattr(sys, "stdout", ToTerminal(written))
    monkeypatch.setattr(sys, "stderr", ToTerminal(written))
    log, bar = Log(), StepBar(0, 2)
    try:
        for done in range(6):
            epoch, batch = divmod(done, 3)
            bar(epoch, batch, 3, {"loss": 1.5, "top1": 0.25})
            logging.getLogger("torchreid_autoreid.test").info("after step %d", done)
            lines = [line for line in on_screen("".join(written)) if line]
            assert lines[: done + 1] == [f"after step {number}" for number in range(done + 1)]
            if done == 5:  # the bars are gone
                assert len(lines) == 6
                break
            run, own = lines[done + 1 :]
            assert run.startswith("run: ")
            assert f" {done + 1}/6 [" in run
            assert own.startswith(f"epoch {epoch + 1}/2: ")
            assert own.endswith(f"{batch + 1}/3, loss=1.500, top1=25%")
    finally:
        log.end()


def test_how_a_command_ended_is_in_the_log(tmp_path, capsys):
    with log(tmp_path) as lines:
        run(raising(UserError("a mistake")))
        run(raising(Interrupted("here.pth")))
        with pytest.raises(ZeroDivisionError):
            run(raising(ZeroDivisionError("a fault")))
        text = "\n".join(lines())
    assert text.startswith("error: a mistake\ninterrupted; resume with --resume here.pth\n")
    assert "a fault" in text
    assert capsys.readouterr().out == ""


def test_a_second_run_adds_to_the_log_and_all_is_put_back(tmp_path, capsys):
    logger = logging.getLogger("torchreid_autoreid")
    before = (sys.stdout, warnings.showwarning, list(logger.handlers), logger.propagate, logger.level)
    for text in ("first", "second"):
        undo = setup_logging(tmp_path, "search")
        print(text, end="")  # the rest of a line is not lost
        undo()
    assert (sys.stdout, warnings.showwarning, list(logger.handlers), logger.propagate, logger.level) == before
    print("afterwards")
    assert [line[20:] for line in (tmp_path / "search.log").read_text().splitlines()] == ["first", "second"]
    assert capsys.readouterr().out == "first\nsecond\nafterwards\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_command_leaves_stdout_and_log_as_they_were_also_where_it_fails(rank, capsys):
    """A notebook runs one command after the other in the same process."""

    def command(error):
        console.begin_log(rank)
        print("a line")
        if error:
            raise error

    before = sys.stdout, warnings.showwarning, list(logging.getLogger("torchreid_autoreid").handlers)
    assert [run(lambda error=error: command(error)) for error in (None, UserError("no"), None)] == [0, 2, 0]
    assert (sys.stdout, warnings.showwarning, logging.getLogger("torchreid_autoreid").handlers) == before
    assert capsys.readouterr().out.count("a line") == (0 if rank else 3)


def test_stdout_still_answers_what_libraries_ask(tmp_path):
    with log(tmp_path):
        assert sys.stdout.isatty() in (True, False)
        assert sys.stdout.encoding
        sys.stdout.flush()


def test_a_log_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.save_dir .*file"):
        setup_logging(tmp_path / "file", "search")
    with pytest.raises(UserError, match=r"data\.save_dir .*file/below"):
        setup_logging(tmp_path / "file" / "below", "search")


# -- log folders ------------------------------------------------------------------------------------------------------


def a_run(folder, text):
    folder.mkdir()
    for name in ("history.jsonl", "checkpoint.pth", "checkpoint-best.pth"):
        (folder / name).write_text(f"{text} {name}")
    return folder


def test_a_new_run_moves_an_earlier_one_aside(tmp_path, capsys):
    folder = a_run(tmp_path / "log", "first")
    keep_earlier_run(folder)
    a_run_again = folder / "checkpoint.pth"
    assert not a_run_again.exists()
    a_run_again.write_text("second")
    keep_earlier_run(folder)
    assert (tmp_path / "log-1" / "checkpoint.pth").read_text() == "first checkpoint.pth"
    assert (tmp_path / "log-2" / "checkpoint.pth").read_text() == "second"
    assert capsys.readouterr().out.splitlines()[1] == f"{folder} holds an earlier run: kept as {tmp_path / 'log-2'}"


def test_a_run_that_goes_on_in_its_own_folder_leaves_it_as_it_is(tmp_path, capsys):
    folder = a_run(tmp_path / "log", "own")
    keep_earlier_run(folder, folder / "checkpoint.pth")
    bring_history(folder, folder / "checkpoint.pth")
    assert (folder / "history.jsonl").read_text() == "own history.jsonl"
    assert capsys.readouterr() == ("", "")


def test_a_run_that_goes_on_elsewhere_takes_its_history_along_and_spares_the_run_there(tmp_path):
    one, other = a_run(tmp_path / "one", "one"), a_run(tmp_path / "other", "other")
    keep_earlier_run(other, one / "checkpoint.pth")
    assert [path.name for path in other.iterdir()] == [".lock"]  # the checkpoint may yet be refused
    bring_history(other, one / "checkpoint.pth")
    for name in ("history.jsonl", "checkpoint-best.pth"):
        assert (other / name).read_text() == (one / name).read_text() == f"one {name}"
        assert (tmp_path / "other-1" / name).read_text() == f"other {name}"
    assert not (other / "checkpoint.pth").exists()


CLAIM = """
import sys
from pathlib import Path
from forks import wait_until
from torchreid_autoreid.engine.run_folder import keep_earlier_run
keep_earlier_run(Path(sys.argv[1]))
Path(sys.argv[2]).write_text("claimed")
wait_until(lambda: not Path(sys.argv[2]).exists())
"""


@pytest.fixture
def claimed(tmp_path):
    """A log folder that another process writes into; it lets go of the folder when the second path is gone."""
    folder, flag, script = tmp_path / "log", tmp_path / "claimed", tmp_path / "claim.py"
    script.write_text(CLAIM)
    run = forks.server().start(script, [folder, flag], tmp_path / "output")
    assert forks.wait_until(flag.exists, run), (tmp_path / "output").read_text()
    yield folder, flag
    flag.unlink(missing_ok=True)
    assert run.wait() == 0, (tmp_path / "output").read_text()


def test_two_processes_never_write_into_one_folder(claimed, tmp_path, monkeypatch):
    folder, flag = claimed
    with monkeypatch.context() as patience:
        patience.setattr(run_folder, "_PATIENCE", 0.1)
        (folder / "history.jsonl").write_text("an epoch")
        with pytest.raises(UserError, match="another process is writing into"):
            keep_earlier_run(folder)
    assert (folder / "history.jsonl").exists()
    flag.unlink()
    keep_earlier_run(folder)  # the lock has ended with the process
    assert (tmp_path / "log-1" / "history.jsonl").exists()


def test_a_restart_waits_for_the_last_process_of_a_killed_run(claimed):
    folder, flag = claimed
    threading.Timer(0.3, flag.unlink).start()
    keep_earlier_run(folder)
    assert not flag.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_will_do(tmp_path, monkeypatch, caplog, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.FileLock, "acquire", refuse)
    with caplog.at_level(logging.WARNING):
        keep_earlier_run(tmp_path / "log")
    assert "has no locks: start no other run in this folder" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"give another data\.save_dir"):
        keep_earlier_run(tmp_path / "file" / "log")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
    ],
)
def test_lack_of_memory_is_a_line_with_what_to_lower(capsys, error):
    assert run(raising(error)) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: out of memory")
    assert "train.batch_size" in line
    assert line.count("\n") == 1


def test_pytorchs_own_lack_of_memory_is_recognised(capsys):
    def main():
        torch.empty(1 << 60, dtype=torch.uint8)

    assert run(main) == 2
    assert "out of memory" in capsys.readouterr().err


def test_the_second_signal_stops_at_once_and_tells_where_to_resume(tmp_path, capsys):
    engine = SimpleNamespace(stop_requested=False, save_dir=tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def main():
        stop_on_signals(engine)
        signal.raise_signal(signal.SIGTERM)
        assert engine.stop_requested
        signal.raise_signal(signal.SIGINT)

    try:
        assert run(main) == 130
        assert capsys.readouterr().err.endswith("interrupted; what has been written is kept\n")
        engine.stop_requested = False
        (tmp_path / "checkpoint.pth").touch()
        assert run(main) == 130
        assert capsys.readouterr().err.endswith(f"interrupted; resume with --resume {tmp_path / 'checkpoint.pth'}\n")
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_torchrun_may_signal_a_process_twice(tmp_path, monkeypatch, capsys):
    """A queue sends the signal to it, and to torchrun, which passes it on."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    engine = SimpleNamespace(stop_requested=False, save_dir=tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop_on_signals(engine)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert engine.stop_requested
    assert capsys.readouterr().err.count("finishing the step") == 1


LOUD = """
import sys
from torchreid_autoreid.commands.console import run, setup_logging
def main():
    setup_logging(sys.argv[1], "loud")
    for number in range(5000):
        print("line", number)
sys.exit(run(main))
"""


def test_a_reader_that_goes_ends_the_lines_and_not_the_run(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", LOUD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0
    assert errors == "nobody reads the output any more; the log file goes on\n"
    assert (tmp_path / "loud.log").read_text().splitlines()[-1].endswith("line 4999")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "status"), [(SharedError("nothing\nat all"), 2), (Interrupted("log/checkpoint.pth"), 130)]
)
def test_of_what_all_processes_end_with_the_first_one_tells(rank, error, status, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    assert run(raising(error)) == status
    assert len(capsys.readouterr().err.splitlines()) == (0 if rank else 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_every_process_reads_by_itself_is_told_once(rank, monkeypatch, capsys):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))

    def main():
        with told_once():
            print("help", file=sys.stderr)
            raise UserError("a bad key")

    assert run(main) == 2
    assert capsys.readouterr().err == ("" if rank else "help\nerror: a bad key\n")


def test_processes_other_than_the_first_say_nothing(capsys):
    logger = logging.getLogger("torchreid_autoreid.something")
    undo = quieten()
    try:
        print("a line")
        logger.warning("a warning of ours")
        warnings.warn("a warning of another", stacklevel=1)
    finally:
        undo()
    assert capsys.readouterr() == ("", "")
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_resume_means_a_file_a_folder_or_whatever_there_is(tmp_path, capsys):
    log = tmp_path / "log"
    assert checkpoint_path("", log) is None
    assert checkpoint_path("auto", log) is None  # the first start
    with pytest.raises(UserError, match=r"there is no checkpoint at .*log; leave --resume out"):
        checkpoint_path(str(log))
    log.mkdir()
    assert checkpoint_path("auto", log) is None
    with pytest.raises(UserError, match=r"there is no checkpoint at .*log/checkpoint\.pth"):
        checkpoint_path(str(log))
    for _ in range(2):
        save_checkpoint({"state_dict": {}}, log / "checkpoint.pth", log / "checkpoint-previous.pth")
    assert checkpoint_path("auto", log) == checkpoint_path(str(log)) == log / "checkpoint.pth"
    assert checkpoint_path(str(log / "checkpoint-previous.pth")) == log / "checkpoint-previous.pth"
    assert capsys.readouterr().err == ""
    (log / "checkpoint.pth").write_bytes(b"PK")
    assert checkpoint_path("auto", log) == checkpoint_path(str(log)) == log / "checkpoint-previous.pth"
    assert capsys.readouterr().err.count("is torn") == 2
    (log / "checkpoint-previous.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"is torn .* is torn"):  # rather than to begin again and lose what may be saved
        checkpoint_path("auto", log)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "log/a"), "cannot write log/a: No space left on device"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000),
            "xxx' is too long for this system",
        ),
        (OSError(errno.EFBIG, "File too large"), "cannot write: File too large"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a loader process has died"),
        (UserError("of a file \x1b[2J\r\nwith \x07 control characters"), "of a file ?[2J with ? control characters"),
        (UserError("x" * 10**6), "error: xxx"),
    ],
)
def test_what_the_machine_does_is_told_in_a_line(error, words, capsys):
    def main():
        raise error

    assert run(main) == 2
    written = capsys.readouterr().err
    assert written.startswith("error: ")
    assert words in written
    assert written.count("\n") == 1
    assert len(written) < 2100


def test_other_faults_keep_their_traceback():
    for error in (OSError(errno.ENOENT, "No such file"), RuntimeError("a fault"), RuntimeError("gloo: closed")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)):
            run(main)


def test_a_process_of_torchrun_that_has_lost_the_others_says_so(monkeypatch, capsys):
    def main():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:27")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(main) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "another process of the run has ended" in capsys.readouterr().err


def test_a_thread_that_loses_a_loader_prints_nothing_and_others_do(capsys):
    """What Python's resource sharer prints when a loader is killed in the middle of a batch."""
    namespace = {}
    for name, printed in ((resource_sharer.__file__, False), ("elsewhere.py", True)):
        exec(compile("def serve():\n    raise EOFError('lost')", name, "exec"), namespace)
        try:
            namespace["serve"]()
        except EOFError as error:
            console._quiet_loader(EOFError, error, error.__traceback__.tb_next)
        assert ("EOFError: lost" in capsys.readouterr().err) is printed


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_reader_that_has_gone_is_not_told(monkeypatch, size):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(lambda: print("x" * size)) == 141


def test_a_broken_pipe_of_another_kind_keeps_its_traceback():
    def fails():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(fails)


def test_a_loader_that_ends_after_the_fault_does_not_break_the_line(monkeypatch):
    """As PyTorch's handler of SIGCHLD does, it raises wherever the main process is."""
    before, written = signal.getsignal(signal.SIGCHLD), []

    def handler(*_):
        raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

    class Interrupted:
        def write(self, text):
            os.kill(os.getpid(), signal.SIGCHLD)
            written.append(text)

    def fails():
        signal.signal(signal.SIGCHLD, handler)
        monkeypatch.setattr(sys, "stderr", Interrupted())
        raise UserError("no more threads")

    try:
        assert console.run(fails) == 2
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "".join(written) == "error: no more threads\n"


def test_a_link_to_itself_is_told_in_a_line(tmp_path, capsys):
    (tmp_path / "a").symlink_to("a")
    assert console.run(lambda: keep_earlier_run(tmp_path / "a")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "a") in line
    assert "give another" in line


def test_a_bar_starts_no_thread(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    def show():
        bar = StepBar(0, 1)
        for batch in range(2):
            bar(0, batch, 2, {"loss": 1.0, "top1": 0.5})

    monkeypatch.setattr(tqdm, "monitor_interval", 10)
    monkeypatch.setattr(tqdm, "monitor", None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # tqdm would warn of it
        assert console.run(show) == 0
