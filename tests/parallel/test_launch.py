"""How the processes of one start find one another, though torchrun remembers those of earlier ones."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from torchreid_autoreid.parallel import launch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
HOST = "127.0.0.1"


def served(size=1):
    return torch.distributed.TCPStore(
        HOST, 0, size, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=1)
    )


@pytest.mark.parametrize("earlier", ["none", "gone", "ending"])
def test_nobody_joins_the_store_of_an_earlier_start(earlier):
    torchruns = served()
    old = None if earlier == "none" else served()
    if old is not None:
        torchruns.set(launch._PORT_KEY, str(old.port))
    if earlier == "gone":
        del old
    clients = [torch.distributed.TCPStore(HOST, torchruns.port, None, False, timedelta(minutes=1)) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(launch._join_store, client, HOST) for client in clients[1:]]
        if earlier == "ending":
            while old.add(launch._JOINED_KEY, 0) < 2:  # both are there, and wait
                pass
        first = pool.submit(launch._serve_store, clients[0], HOST, 3).result(timeout=60)
        stores = [other.result(timeout=60) for other in others]
    first.set("here", "the new one")
    assert [store.get("here") for store in stores] == [b"the new one"] * 2


def test_the_first_collective_is_within_the_limit_of_connecting(monkeypatch):
    """NCCL connects there."""
    happened = []

    class Watched(launch.AllProcesses):
        def sum(self, array):
            happened.append("collective")
            return super().sum(array)

    within = launch._ends_without

    def watched(patience):
        happened.append(patience)
        with within(patience) as inner:
            yield inner
        happened.append("connected")

    monkeypatch.setattr(launch, "AllProcesses", Watched)
    monkeypatch.setattr(launch, "_ends_without", launch.contextmanager(watched))
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": HOST, "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    shared = served()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(shared, 0, 1)]))
    with launch.torchrun_processes("cpu") as world:
        assert world.size == 1
    assert happened == [launch.CONNECT_TIMEOUT, "collective", "connected"]
