"""Starts the commands of ``projects/autoreid`` many times over: a process that has PyTorch loaded forks each of them.

A child is the leader of a session of its own, so that all processes it starts can be found by its id. Drawing takes two
thirds of a small search's time, so a child draws only where a test looks at pictures.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Server:
    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def start(self, script, arguments, output, limits=None, errors=None, draws=False, environment=None):
        """Starts a command, or a file of Python by its absolute path.

        Its stdout and stderr go to the file ``output``, or stderr to ``errors``.
        """
        files = {"output": str(output), "errors": None if errors is None else str(errors)}
        request = {"script": str(script), "arguments": [str(a) for a in arguments], "limits": limits, **files}
        request |= {"draws": draws, "environment": environment or {}}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Run(self, int(self.process.stdout.readline()))

    def run(self, script, arguments, output, limits=None):
        """Its exit status."""
        return self.start(script, arguments, output, limits).wait()


@functools.cache
def server():
    """One for all tests of this process."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(Server())


def completed(script, arguments, draws=False, environment=None):
    """As ``subprocess.run(…, capture_output=True, text=True)`` of a command, without the seconds that PyTorch takes.

    The script ``-c`` stands for code, its one argument, which imports torchreid and the plugin anew.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        run = server().start(script, arguments, output, errors=errors, draws=draws, environment=environment)
        status = run.wait()
        return subprocess.CompletedProcess(arguments, status, output.read_text(), errors.read_text())


def completed_together(script, arguments, processes=2):
    """As :func:`completed`, of one command in several processes, as torchrun starts them; RANK stands for the rank.

    The status is the largest of theirs; what they have written stands one after the other.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        runs, written = [], [[Path(folder) / f"{name}{rank}" for rank in range(processes)] for name in "oe"]
        for rank, (output, errors) in enumerate(zip(*written, strict=True)):
            environment = {
                "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
                **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
            }  # fmt: skip
            words = [str(argument).replace("RANK", str(rank)) for argument in arguments]
            runs.append(server().start(script, words, output, errors=errors, environment=environment))
        status = max(run.wait() for run in runs)
        return subprocess.CompletedProcess(
            arguments, status, *("".join(file.read_text() for file in files) for files in written)
        )


def stopped(script, arguments, when, kind):
    """As :func:`completed`, of a command that gets a signal as soon as it has printed a text, or a condition holds."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        run = server().start(script, arguments, output, errors=errors)
        condition = when if callable(when) else lambda: output.exists() and when in output.read_text()
        assert wait_until(condition, run), errors.read_text()
        run.send(kind)
        return subprocess.CompletedProcess(arguments, run.wait(), output.read_text(), errors.read_text())


class Run:
    """A command that runs."""

    def __init__(self, server, pid):
        self.server, self.pid, self.status = server, pid, None

    def send(self, signum):
        os.kill(self.pid, signum)

    def running(self):
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"

    def wait(self):
        """The exit status; the negative signal if one has ended it."""
        if self.status is None:
            self.server.process.stdin.write(f"wait {self.pid}\n")
            self.server.process.stdin.flush()
            self.status = os.waitstatus_to_exitcode(int(self.server.process.stdout.readline()))
        return self.status

    def family(self):
        """Ids of the processes in its session that are alive: itself, its loader processes, and theirs."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rsplit(")", 1)[1].split()[:4]
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            if int(session) == self.pid and state != "Z":
                found.append(int(stat.parent.name))
        return found


def wait_until(condition, run=None):
    """Polls; gives up when the command has ended."""
    while not condition():
        if run is not None and not run.running():
            return False
        time.sleep(0.002)
    return True


def serve():
    # All that a command imports, however late: a child that imports it for itself does so for each test.
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401
    import pictures
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch
    import torch.utils.flop_counter

    import torchreid_autoreid.commands.evaluate
    import torchreid_autoreid.commands.report
    import torchreid_autoreid.commands.search
    import torchreid_autoreid.commands.train
    import torchreid_autoreid.report  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # else each child looks at all that has been imported when it ends, and copies the pages: over a second
    while line := sys.stdin.readline():
        if line.startswith("wait "):
            print(os.waitpid(int(line.split()[1]), 0)[1], flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            break
        print(pid, flush=True)
    else:
        return
    request = json.loads(line)
    os.setsid()
    if Path(request["output"]).is_file():  # no device
        Path(request["output"]).unlink()
    for descriptor, name in ((1, request["output"]), (2, request["errors"] or request["output"])):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.reconfigure(line_buffering=True)
    if request["limits"]:
        import resource

        for name, value in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, resource.RLIM_INFINITY))
    os.environ.update(request["environment"])
    if not request["draws"]:
        pictures.draw_nothing()
    if request["script"] == "-c":
        sys.argv = ["-c"]
        forget()
        leave(lambda: exec(request["arguments"][0], {"__name__": "__main__"}))
    script = str(ROOT / "projects" / "autoreid" / request["script"])
    sys.argv = [script, *request["arguments"]]
    leave(lambda: runpy.run_path(script, run_name="__main__"))


def forget():
    """Leaves torchreid and the plugin as if nobody had imported them."""
    for name in list(sys.modules):
        if name.split(".")[0] in ("torchreid", "torchreid_autoreid"):
            del sys.modules[name]


def leave(run):
    """Runs a program and ends the process as Python does, but does not free all that has been imported.

    Freeing it writes into every page that the child shares with its parent, which takes longer than many a command.
    """
    status = 1
    try:
        run()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # waits for threads, as Python's own end does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
