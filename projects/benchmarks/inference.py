"""Parameters, MACs, images per second and memory of our networks beside torchreid's, PyTorch and onnxruntime.

    python projects/benchmarks/inference.py
    python projects/benchmarks/inference.py --model autoreid --model resnet50 --size 256 128 --rounds 5

Each model has a process of its own, which holds all its forms and waits; they are measured in turn, several rounds. A
line a model and round comes as it is measured, and the table of medians at the end of a size; ``--json`` is written
after every line, so that a run that is cut leaves what it has. All of it takes about ten minutes on two idle cores and
6 GB of memory.

PyTorch runs in channels-last, which is the faster layout for all of them; weights are random. Memory is the highest
resident size of a pass beyond what the process held before it, all free memory given back. Rates are also given as
multiples of ResNet-50's.

``pytorch`` and ``onnxruntime-plain`` are the networks as they are trained; ``pytorch-fused`` and ``onnxruntime`` those
that are deployed: ours in their fused form, torchreid's with the batch norms folded into the convolutions (which
onnxruntime does by itself). While they are timed, all processes keep the memory that they free, or PyTorch on a CPU
spends a third of its time on page faults. ``--cpu-time`` takes rates by the processor's time, for a machine with other
work.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.fx.experimental.optimization  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from given import number, whole  # noqa: E402  beside this file

from torchreid_autoreid.commands.console import run  # noqa: E402
from torchreid_autoreid.config.read import load_config  # noqa: E402
from torchreid_autoreid.deploy.export import write_onnx  # noqa: E402
from torchreid_autoreid.deploy.fusion import fuse  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.files import check_output, write_atomically  # noqa: E402
from torchreid_autoreid.spec import Description  # noqa: E402

fold_batch_norms = torch.fx.experimental.optimization.fuse
MODELS = (
    "resnet50",
    "autoreid",
    "autoreid_x0_5",
    "autoreid_x0_25",
    "resnet18",
    "osnet_x1_0",
    "osnet_x0_25",
    "mobilenetv2_x1_0",
)
SIZES = ((256, 128), (384, 128))
BACKENDS = ("pytorch", "pytorch-fused", "onnxruntime-plain", "onnxruntime")
#: glibc gives freed memory back by default, and takes it again page by page
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


def memory(field: str) -> float:
    """VmRSS (now) or VmHWM (the highest so far) of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise UserError("this system has no /proc; run the benchmark on Linux")


def describe(name: str, size: tuple[int, int]) -> Description:
    opts = ["model.name", name, "data.height", str(size[0]), "data.width", str(size[1])]
    return Description.of_config(load_config(opts=opts))


def count(network: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Parameters in millions and MACs of an image in billions, without the classifier."""
    parameters = sum(p.numel() for key, p in network.named_parameters() if not key.startswith("classifier"))
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(images[:1])
    return {"parameters": parameters / 1e6, "macs": counter.get_total_flops() / 2 / 1e9}


def deployed(network: nn.Module) -> nn.Module:
    """Our fused form; PyTorch's own fusion of batch norms for the others, where it can trace them."""
    fused = fuse(network)
    if fused is network:
        with contextlib.suppress(torch.fx.proxy.TraceError):
            return fold_batch_norms(network)
    return fused


def pytorch_runner(network: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode():
            return network(images)

    return run


def onnxruntime_runner(network: nn.Module, images: torch.Tensor, threads: int) -> Callable[[], object]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(network, images, path, {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options)
    array = images.numpy()
    return lambda: session.run(None, {"images": array})


def peak_memory(run: Callable[[], object]) -> float:
    """The highest resident size of a pass beyond the one before it, in MB."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # of a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size starts again from here
    run()
    return memory("VmHWM") - before


def rate(run: Callable[[], object], options: argparse.Namespace) -> float:
    """Images per second."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    started, batches = clock(), 0
    while batches < 3 or clock() - started < options.seconds:
        run()
        batches += 1
    return batches * options.batch / (clock() - started)


def serve(options: argparse.Namespace) -> None:
    """The process of a model: says what it costs, and then its rates for every line that it is sent."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    (name,), (size,) = options.model, options.size
    network = describe(name, size).build(1).eval()
    images = torch.randn(options.batch, 3, *size)
    costs: dict[str, Any] = count(network, images)
    runners = {}
    for backend in options.backend:
        form = deployed(network) if backend in ("pytorch-fused", "onnxruntime") else network
        if backend.startswith("pytorch"):
            runners[backend] = pytorch_runner(form, images)
        else:
            runners[backend] = onnxruntime_runner(form, images, options.threads)
    costs["memory"] = {backend: peak_memory(run) for backend, run in runners.items()}
    print(json.dumps(costs), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({b: rate(run, options) for b, run in runners.items()}), file=answers, flush=True)


class Contestant:
    """A model in a process of its own, which ends with this one."""

    def __init__(self, name: str, size: tuple[int, int], options: argparse.Namespace) -> None:
        command = [sys.executable, "-W", "ignore", __file__, "--serve", "--model", name, "--size", *map(str, size)]
        for key in ("threads", "batch", "seconds"):
            command += [f"--{key}", str(getattr(options, key))]
        for backend in options.backend:
            command += ["--backend", backend]
        self.name, self.size = name, size
        self.costs: dict[str, Any] = {}
        self.rates: list[dict[str, float]] = []
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process lives
        self.process = subprocess.Popen(
            [*command, *(["--cpu-time"] if options.cpu_time else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            env=os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": str(options.threads)},
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.complaints.seek(0)
            raise UserError(
                f"{self.name} failed: {(self.complaints.read().strip().splitlines() or ['no message'])[-1]}"
            )
        return json.loads(line)

    def measure(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self.rates.append(self.answer())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.complaints.close()

    def row(self, resnet50: Contestant | None) -> dict[str, Any]:
        """The medians so far, with multiples of ResNet-50's."""
        row = {"name": self.name, "size": list(self.size), "rounds": len(self.rates)}
        row |= {key: self.costs[key] for key in ("parameters", "macs")}
        for backend, used in self.costs["memory"].items():
            median = statistics.median(rates[backend] for rates in self.rates)
            of_peer = [rates[backend] for rates in resnet50.rates] if resnet50 else []
            ratio = median / statistics.median(of_peer) if of_peer else None
            row[backend] = {"rate": median, "ratio": ratio, "memory": used}
        return row


def compare(size: tuple[int, int], options: argparse.Namespace, save: Callable[[list[dict]], None]) -> list[dict]:
    """Rounds of all contestants in turn; prints, hands on and returns the medians."""
    clock = "second of the processor" if options.cpu_time else "second"
    print(
        f"\n{size[0]} x {size[1]}, batch {options.batch}, {options.threads} threads, {options.rounds} rounds, "
        f"images per {clock}",
        flush=True,
    )
    contestants: list[Contestant] = []
    try:
        contestants += [Contestant(name, size, options) for name in options.model]
        for contestant in contestants:
            contestant.costs = contestant.answer()
        resnet50 = next((contestant for contestant in contestants if contestant.name == "resnet50"), None)
        rows: list[dict] = []
        for number in range(1, options.rounds + 1):
            for contestant in contestants:
                contestant.measure()
                found = "".join(f"{value:20.1f}" for value in contestant.rates[-1].values())
                print(f"round {number:<3}{contestant.name:18}{found}", flush=True)
                rows = [one.row(resnet50) for one in contestants if one.rates]
                save(rows)
        print_table(rows, options)
        return rows
    finally:
        for contestant in contestants:
            contestant.end()


def print_table(rows: list[Mapping[str, Any]], options: argparse.Namespace) -> None:
    head = "".join(f"{backend:>20}{'x ResNet-50':>13}{'MB':>7}" for backend in options.backend)
    print(f"{'':18}{'M params':>9}{'GMACs':>8}{head}")
    for row in rows:
        line = f"{row['name']:18}{row['parameters']:9.2f}{row['macs']:8.3f}"
        for backend in options.backend:
            found = row[backend]
            ratio = "-" if found["ratio"] is None else f"{found['ratio']:.2f}"
            line += f"{found['rate']:20.1f}{ratio:>13}{found['memory']:7.0f}"
        print(line, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="model name; may be repeated (default: eight of them)")
    parser.add_argument("--size", action="append", type=whole(1), nargs=2, metavar=("H", "W"), help="may be repeated")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be repeated (default: all)")
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--batch", type=whole(1), default=8)
    parser.add_argument("--seconds", type=number(), default=2.0, help="least time of a measurement")
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument("--cpu-time", action="store_true", help="images per second of the processor's time")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there, as they come")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = options.model or list(MODELS)
    options.size = [tuple(size) for size in options.size or SIZES]
    options.backend = options.backend or list(BACKENDS)
    return options


def main() -> None:
    options = parse()
    if options.serve:
        serve(options)
        return
    if options.json:
        check_output("--json", options.json)
    figures: list[dict] = []

    def save(rows: list[dict]) -> None:
        if options.json:
            text = json.dumps(figures + rows, indent=1)
            write_atomically(options.json, lambda name: Path(name).write_text(text + "\n", encoding="utf-8"))

    try:
        for size in options.size:
            figures += compare(size, options, save)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {options.json or 'what is above'} has what was measured") from None


if __name__ == "__main__":
    sys.exit(run(main))
