"""Parameters, MACs, images per second and memory of our networks beside torchreid's, PyTorch and onnxruntime.

    python projects/benchmarks/inference.py
    python projects/benchmarks/inference.py --model autoreid --model resnet50 --size 256 128 --rounds 5

Every measurement runs in a process of its own, the contestants in turn, several rounds; the table shows medians.
PyTorch runs in channels-last, which is the faster layout for all of them; weights are random. Memory is the highest
resident size beyond what the process held with the network loaded. Rates are also given as multiples of ResNet-50's.

``pytorch`` and ``onnxruntime-plain`` are the networks as they are trained; ``pytorch-fused`` and ``onnxruntime`` those
that are deployed: ours in their fused form, torchreid's with the batch norms folded into the convolutions (which
onnxruntime does by itself). All processes keep the memory that they free, or PyTorch on a CPU spends a third of
its time on page faults. ``--cpu-time`` takes rates by the processor's time, for a machine with other work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.fx.experimental.optimization  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torchreid_autoreid.config import load_config  # noqa: E402
from torchreid_autoreid.description import Description  # noqa: E402
from torchreid_autoreid.errors import UserError  # noqa: E402
from torchreid_autoreid.export import write_onnx  # noqa: E402
from torchreid_autoreid.fusion import fuse  # noqa: E402

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


def count(name: str, size: tuple[int, int]) -> tuple[float, float]:
    """Parameters in millions and MACs in billions, without the classifier."""
    network = describe(name, size).build(1).eval()
    parameters = sum(p.numel() for key, p in network.named_parameters() if not key.startswith("classifier"))
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        network(torch.zeros(1, 3, *size))
    return parameters / 1e6, counter.get_total_flops() / 2 / 1e9


def deployed(network: nn.Module) -> nn.Module:
    """Our fused form; PyTorch's own fusion of batch norms for the others, where it can trace them."""
    fused = fuse(network)
    if fused is network:
        with contextlib.suppress(torch.fx.proxy.TraceError):
            return fold_batch_norms(network)
    return fused


def pytorch_runner(network: nn.Module, images: torch.Tensor, threads: int) -> Callable[[], object]:
    network = network.to(memory_format=torch.channels_last)
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


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Images per second of one contestant in this process, and its memory."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, size = options.model[0], tuple(options.size[0])
    network = describe(name, size).build(1).eval()
    if options.backend in ("pytorch-fused", "onnxruntime"):
        network = deployed(network)
    runner = pytorch_runner if options.backend.startswith("pytorch") else onnxruntime_runner
    run = runner(network, torch.randn(options.batch, 3, *size), options.threads)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size starts again from here
    run()
    clock = time.process_time if options.cpu_time else time.perf_counter
    started, batches = clock(), 0
    while batches < 3 or clock() - started < options.seconds:
        run()
        batches += 1
    rate = batches * options.batch / (clock() - started)
    return {"rate": rate, "memory": memory("VmHWM") - before}


def in_own_process(name: str, size: tuple[int, int], backend: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--measure", "--model", name, "--size", *map(str, size)]
    for key in ("threads", "batch", "seconds"):
        command += [f"--{key}", str(getattr(options, key))]
    finished = subprocess.run(
        [*command, "--backend", backend, *(["--cpu-time"] if options.cpu_time else [])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": str(options.threads)},
    )
    if finished.returncode:
        raise UserError(f"{name} failed: {(finished.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(finished.stdout.splitlines()[-1])


def compare(size: tuple[int, int], options: argparse.Namespace) -> list[dict]:
    """Rounds of all contestants in turn; prints and returns the medians."""
    names = options.model or MODELS
    answers: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for backend in options.backends:
            for name in names:
                answers.setdefault((name, backend), []).append(in_own_process(name, size, backend, options))
    clock = "second of the processor" if options.cpu_time else "second"
    print(
        f"\n{size[0]} x {size[1]}, batch {options.batch}, {options.threads} threads, {options.rounds} rounds, "
        f"images per {clock}"
    )
    head = "".join(f"{backend:>20}{'x ResNet-50':>13}{'MB':>7}" for backend in options.backends)
    print(f"{'':18}{'M params':>9}{'GMACs':>8}{head}")
    rows = []
    for name in names:
        parameters, macs = count(name, size)
        row: dict = {"name": name, "size": list(size), "parameters": parameters, "macs": macs}
        line = f"{name:18}{parameters:9.2f}{macs:8.3f}"
        for backend in options.backends:
            rate = statistics.median(answer["rate"] for answer in answers[name, backend])
            used = statistics.median(answer["memory"] for answer in answers[name, backend])
            peer = answers.get(("resnet50", backend))
            ratio = rate / statistics.median(answer["rate"] for answer in peer) if peer else float("nan")
            row[backend] = {"rate": rate, "ratio": ratio, "memory": used}
            line += f"{rate:20.1f}{ratio:13.2f}{used:7.0f}"
        print(line, flush=True)
        rows.append(row)
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="model name; may be repeated (default: eight of them)")
    parser.add_argument("--size", action="append", type=int, nargs=2, metavar=("H", "W"), help="may be repeated")
    parser.add_argument("--backend", choices=BACKENDS, help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="images per second of the processor's time")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures there")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    options.backends = (options.backend,) if options.backend else BACKENDS
    try:
        if options.measure:
            print(json.dumps(measure(options)))
            return 0
        if options.rounds < 1 or options.batch < 1 or options.threads < 1:
            raise UserError("--rounds, --batch and --threads must be at least 1")
        figures = [row for size in options.size or SIZES for row in compare(tuple(size), options)]
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
