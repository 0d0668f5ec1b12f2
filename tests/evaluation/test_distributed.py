"""Two and three processes, each with its shard of the gallery, give the figures of one, to the bit."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import workers
from forks import completed, server

from torchreid_autoreid.errors import SharedError, UserError
from torchreid_autoreid.evaluation import evaluate, roc
from torchreid_autoreid.parallel.launch import torchrun_processes

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", params=[2, 3])
def answers(request, tmp_path_factory):
    folder, size = tmp_path_factory.mktemp("gloo"), request.param
    runs = []
    for rank in range(size):
        path = f"import sys; sys.path.insert(0, {str(HERE)!r})"
        code = f"{path}; import workers; workers.work({rank}, {size}, {str(folder)!r})"
        runs.append(server().start("-c", [code], folder / f"output{rank}"))
    for rank, run in enumerate(runs):
        assert run.wait() == 0, (folder / f"output{rank}").read_text()
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("case", workers.CASES)
def test_figures_are_those_of_one_process(answers, case):
    make, options = workers.CASES[case]
    expected = json.loads(json.dumps(workers.summary(evaluate(*workers.data(make), **options))))
    for answer in answers:
        assert answer[case].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(answer[case][name], value, err_msg=name)


def test_roc_is_that_of_one_process(answers):
    curve = roc(*workers.data(workers.tied), [0.01, 0.3], metric="euclidean")
    for answer in answers:
        assert answer["roc"] == [curve.tpr.tolist(), curve.thresholds.tolist(), curve.num_positive, curve.num_negative]


@pytest.mark.parametrize(("rank", "kind"), [(0, UserError), (1, SharedError), (2, SharedError)])
def test_more_processes_than_gpus_end_all_of_them_and_one_tells(rank, kind, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("LOCAL_RANK", rank), ("LOCAL_WORLD_SIZE", 3)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="more processes here than the 2 GPUs") as caught, torchrun_processes("cuda"):
        pass
    assert type(caught.value) is kind


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_a_process_that_waits_for_a_connection_in_vain_ends_with_one_line():
    """gloo waits in C++, where neither an exception nor a signal's handler reaches it."""
    script = (
        "from datetime import timedelta\n"
        "from torchreid_autoreid.parallel import launch\n"
        "launch.CONNECT_TIMEOUT = timedelta(seconds=2)\n"
        "with launch.torchrun_processes('cpu'):\n"
        "    print('connected')\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    finished = completed("-c", [script], environment=alone | {"TORCHELASTIC_RUN_ID": "x"})
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = [line for line in finished.stderr.splitlines() if not line.startswith("[")]  # PyTorch's own
    assert line.startswith("error: the processes have not connected within 2 s; torchrun starts them again if")
