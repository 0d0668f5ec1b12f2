"""Seconds and memory of a search step: the search network beside its plain form and the public re-implementation.

    python projects/benchmarks/search_step.py [--peer DIR]
    python projects/benchmarks/search_step.py --channels 16 --size 128 64 --batch 32 --step first --step gdas

A step moves the alphas on one batch and then the weights on another: of first order, of second order, and of first
order with the strategy gdas. The contestants:

- `ours`: what search.py runs;
- `edges`: every operation of every edge by itself, as the cell is defined, also for gdas, whose weights are then zero
  but for one an edge (this is what the multiples are of);
- `edges, channels last`: the same in the memory format of `ours`;
- `peer`: network and architect of github.com/duanyiqun/Auto-ReID-Fast, in a checkout DIR, with the same channels,
  cells, input and batch. It has no gdas, and it keeps the full resolution of the input in its first cells.

Every measurement runs in a process of its own, the contestants in turn, several rounds; the table shows the medians of
the processor's seconds (of all threads) and of the clock's. Memory is the highest resident size beyond what the process
held with the network built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from given import whole  # noqa: E402  beside this file

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.files import check_output  # noqa: E402
from torchreid_autoreid.search.architect import Architect, TrainGradients, frozen, random_states  # noqa: E402
from torchreid_autoreid.search.losses import RetrievalLoss  # noqa: E402
from torchreid_autoreid.space.cells import SearchCell  # noqa: E402
from torchreid_autoreid.space.networks import AutoReIDSearchNetwork  # noqa: E402
from torchreid_autoreid.space.strategies import Mixture  # noqa: E402

STEPS = ("first", "second", "gdas")
CONTESTANTS = ("edges", "edges, channels last", "ours", "peer")
IDENTITIES = 100
CELLS = 8

Batch = tuple[torch.Tensor, torch.Tensor]


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (the highest so far) of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise UserError("this system has no /proc; run the benchmark on Linux")


def batches(options: argparse.Namespace) -> tuple[Batch, Batch]:
    identities = torch.arange(options.batch) // 4
    return tuple((torch.randn(options.batch, 3, *options.size), identities) for _ in range(2))  # type: ignore[return-value]


def our_step(options: argparse.Namespace, contestant: str, step: str) -> Callable[[], None]:
    network = AutoReIDSearchNetwork(
        IDENTITIES, channels=options.channels, layers=(CELLS // 4,) * 4, strategy="gdas" if step == "gdas" else "darts"
    )
    train, val = batches(options)
    if contestant != "edges":
        network = network.to(memory_format=torch.channels_last)
        train, val = ((images.to(memory_format=torch.channels_last), ids) for images, ids in (train, val))
    if contestant != "ours":
        SearchCell.forward = every_edge  # type: ignore[method-assign]
    retrieval = RetrievalLoss()
    optimizer = torch.optim.SGD(network.weights(), lr=0.1, momentum=0.9, weight_decay=5e-5)
    alpha_optimizer = torch.optim.Adam(network.alphas(), lr=0.02, betas=(0.5, 0.999))
    order = 2 if step == "second" else 1
    architect = Architect(network, lambda outputs, ids: retrieval(outputs, ids)[0], optimizer, order)

    def differentiate_weights() -> None:
        optimizer.zero_grad()
        with frozen(network.alphas()):
            retrieval(network(train[0]), train[1])[0].backward()

    def run() -> None:  # as the engine does
        if order == 2:
            states = random_states(network.weights())
            differentiate_weights()
            architect.backward(train, val, TrainGradients.of(network.weights(), states))
            alpha_optimizer.step()
        else:
            architect.backward(train, val)
            alpha_optimizer.step()
            differentiate_weights()
        optimizer.step()

    return run


def every_edge(cell: Any, before_last: torch.Tensor, last: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    return cell.edge_by_edge(cell.inputs(before_last, last), Mixture(mixture.weights))


def peer_step(options: argparse.Namespace, step: str) -> Callable[[], None]:
    if step == "gdas":
        raise UserError("it has no gdas")
    sys.path.insert(0, str(options.peer))
    # Its architect imports its own distributed tools, which one process has no use for.
    tools = types.ModuleType("utils")
    tools.distributed = types.ModuleType("utils.distributed")  # type: ignore[attr-defined]
    sys.modules |= {"utils": tools, "utils.distributed": tools.distributed}
    from models.DARTS.archetect import Architect as PeerArchitect
    from models.DARTS.search_cnn import SearchCNNController

    network = SearchCNNController(3, options.channels, IDENTITIES, CELLS, torch.nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(network.weights(), lr=0.1, momentum=0.9, weight_decay=5e-5)
    alpha_optimizer = torch.optim.Adam(network.alphas(), lr=0.02, betas=(0.5, 0.999))
    architect = PeerArchitect(network, 0.9, 5e-5, types.SimpleNamespace(distributed=False))
    train, val = batches(options)

    def run() -> None:
        alpha_optimizer.zero_grad()
        if step == "second":
            architect.unrolled_backward(*train, *val, 0.1, optimizer)
        else:
            for alpha, gradient in zip(
                network.alphas(), torch.autograd.grad(network.loss(*val), list(network.alphas())), strict=True
            ):
                alpha.grad = gradient
        alpha_optimizer.step()
        optimizer.zero_grad()
        network.loss(*train).backward()
        optimizer.step()

    return run


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One contestant in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    contestant, step = options.contestant[0], options.step[0]
    run = peer_step(options, step) if contestant == "peer" else our_step(options, contestant, step)
    before = memory("VmRSS")
    run()  # the first one fills caches
    clock, processor = [], []
    for _ in range(options.repeats):
        started, used = time.perf_counter(), time.process_time()
        run()
        clock.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return {
        "seconds": statistics.median(clock),
        "cpu": statistics.median(processor),
        "memory": memory("VmHWM") - before,
    }


def in_own_process(contestant: str, step: str, options: argparse.Namespace) -> dict[str, float] | str:
    """The figures, or why there are none."""
    command = [sys.executable, "-W", "ignore", __file__, "--measure", "--contestant", contestant, "--step", step]
    command += ["--size", *map(str, options.size)] + (["--peer", str(options.peer)] if options.peer else [])
    for key in ("threads", "batch", "channels", "repeats"):
        command += [f"--{key}", str(getattr(options, key))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode < 0:
        return f"killed by signal {-finished.returncode}, probably for memory"
    if finished.returncode:
        return (finished.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(finished.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> list[dict]:
    """Rounds of all contestants in turn; prints and returns the medians."""
    contestants = options.contestant or [name for name in CONTESTANTS if name != "peer" or options.peer]
    print(
        f"{options.size[0]} x {options.size[1]}, batch {options.batch}, C = {options.channels}, {CELLS} cells, "
        f"{options.threads} threads, {options.rounds} rounds"
    )
    print(f"{'step':8}{'contestant':22}{'CPU s':>8}{'seconds':>9}{'speed-up':>10}{'MB':>8}", flush=True)
    rows = []
    for step in options.step or STEPS:
        answers: dict[str, list] = {}
        for _ in range(options.rounds):
            for name in contestants:
                if not (answers.get(name) and isinstance(answers[name][0], str)):
                    answers.setdefault(name, []).append(in_own_process(name, step, options))
        for name in contestants:
            row: dict = {"step": step, "contestant": name}
            if isinstance(answers[name][0], str):
                print(f"{step:8}{name:22}  {answers[name][0]}", flush=True)
                rows.append(row | {"failed": answers[name][0]})
                continue
            row |= {key: statistics.median(each[key] for each in answers[name]) for key in answers[name][0]}
            plain = next((other for other in rows if (other["step"], other["contestant"]) == (step, "edges")), row)
            row["speed_up"] = plain["cpu"] / row["cpu"]
            print(
                f"{step:8}{name:22}{row['cpu']:8.2f}{row['seconds']:9.2f}{row['speed_up']:10.2f}{row['memory']:8.0f}",
                flush=True,
            )
            rows.append(row)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="DIR", help="checkout of github.com/duanyiqun/Auto-ReID-Fast")
    parser.add_argument("--step", action="append", choices=STEPS, help="may be repeated (default: all three)")
    parser.add_argument("--contestant", action="append", choices=CONTESTANTS, help="may be repeated (default: all)")
    parser.add_argument("--size", type=whole(1), nargs=2, metavar=("H", "W"), default=(128, 64))
    parser.add_argument("--channels", type=whole(1), default=16, help="C of the search network")
    parser.add_argument("--batch", type=whole(1), default=32)
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--repeats", type=whole(1), default=3, help="steps of a measurement")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    if options.peer and not (options.peer / "models" / "DARTS").is_dir():
        raise UserError(f"--peer {options.peer} has no folder models/DARTS; give a checkout of Auto-ReID-Fast")
    if options.json:
        check_output("--json", options.json)
    rows = compare(options)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
