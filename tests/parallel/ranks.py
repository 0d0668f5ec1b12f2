"""What the tests run in one process and in each of two."""

import weakref
from pathlib import Path

import pictures
import torch
import torchreid
from torch import nn

from torchreid_autoreid.checkpoint import load_checkpoint
from torchreid_autoreid.data import SearchDataManager, TrainDataManager
from torchreid_autoreid.engine import (
    ImageAutoReIDSearchEngine,
    ImageCandidateSearchEngine,
    ImageSoftmaxTrainingEngine,
    ImageTripletTrainingEngine,
    Recipe,
    build_scheduler,
)
from torchreid_autoreid.errors import Interrupted, SharedError
from torchreid_autoreid.genotype import OPERATION_NAMES
from torchreid_autoreid.parallel.batch_norm import synchronise_batch_norm, unsynchronised_buffers
from torchreid_autoreid.parallel.group import Group, draw_rows, group
from torchreid_autoreid.parallel.launch import leave_group
from torchreid_autoreid.search.halving import Rung
from torchreid_autoreid.search.losses import RetrievalLoss
from torchreid_autoreid.search.plans import RungPlan
from torchreid_autoreid.search.selection import draw_genotype
from torchreid_autoreid.space.neck import add_neck
from torchreid_autoreid.space.networks import AutoReIDNetwork, AutoReIDSearchNetwork

PROCESSES = 2
EPOCHS = 2  # of the runs that go on after the first; the others end with it


DATA = {
    "height": 32,
    "width": 16,
    "transforms": ["random_flip", "random_crop"],
    "batch_size_train": 8,
    "batch_size_test": 16,
    "num_instances": 2,
    "train_sampler": "RandomIdentitySampler",
    "workers": 0,
    "use_gpu": False,
    "seed": 3,
}


class InFloat64:
    """Before an engine: the images of training as the network has them, so that nothing but rounding is left."""

    def _to_device(self, data):
        images, identities = super()._to_device(data)
        return images.to(next(self.model.parameters()).dtype), identities

    def _features_of(self, images):
        return super()._features_of(images.to(next(self.model.parameters()).dtype))


class Search(InFloat64, ImageAutoReIDSearchEngine):
    pass


def search_engine(root, rank, size, sync=True, dtype=torch.float64, strategy="darts", recomputed=False, **options):
    torchreid.utils.set_random_seed(3)
    datamanager = SearchDataManager(str(root), "folder", "folder", share=(rank, size), **DATA)
    model = AutoReIDSearchNetwork(
        datamanager.num_train_pids,
        channels=2,
        layers=(1, 1, 1, 1),
        blocks=1,
        strategy=strategy,
        activation_checkpointing=recomputed,
    ).to(dtype)
    if size > 1 and sync:
        synchronise_batch_norm(model)
    optimizer = torch.optim.SGD(model.weights(), lr=0.05, momentum=0.9, weight_decay=5e-5)
    return Search(
        datamanager,
        model,
        optimizer,
        torch.optim.Adam(model.alphas(), lr=0.02, betas=(0.5, 0.999)),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, 1e-3),
        loss=RetrievalLoss(label_smooth=0.1),
        distributed=size > 1,
        use_gpu=False,
        **options,
    )


def searched(root, folder, rank, size, **options):
    """A whole search: the gradients that were followed, and how it ended."""
    engine = search_engine(root, rank, size, **options)
    seen = {"alphas": [], "weights": []}
    for name, optimizer in (("alphas", engine.alpha_optimizer), ("weights", engine.optimizer)):
        optimizer.register_step_pre_hook(
            lambda own, *_, name=name: seen[name].append(
                [p.grad.clone() for group in own.param_groups for p in group["params"] if p.grad is not None]
            )
        )
    figures = []
    engine.on_step = lambda *args: figures.append(args[3])
    genotype = engine.run(str(folder), 1, print_freq=100)
    return {
        "gradients": seen,
        "figures": figures,
        "state": engine.model.state_dict(),
        "genotype": genotype.to_dict(),
        "written": sorted(path.name for path in Path(folder).glob("*")) if rank == 0 else [],
    }


def searched_at_random(root, folder, rank, size):
    """A random search of a single candidate."""
    datamanager = TrainDataManager(str(root), "folder", "folder", share=(rank, size), held_out=1 / 3, **DATA)

    def train(genotype):
        model = AutoReIDNetwork(datamanager.num_train_pids, "triplet", genotype, 2, (1, 1, 1, 1)).double()
        if size > 1:
            synchronise_batch_norm(model)
        return model, torch.optim.SGD(model.parameters(), lr=0.01)

    plan = RungPlan([Rung(1, 1)], lambda index: draw_genotype(OPERATION_NAMES, 1, str(index)))
    engine = type("Random", (InFloat64, ImageCandidateSearchEngine), {})(
        datamanager, train, OPERATION_NAMES, 1, plan, distributed=size > 1, use_gpu=False
    )
    figures = []
    engine.on_step = lambda *args: figures.append(args[3])
    genotype = engine.run(str(folder), 1, print_freq=100)
    return {"figures": figures, "state": engine.model.state_dict(), "genotype": genotype.to_dict()}


def trained(root, folder, rank, size, kind, neck="none", dtype=torch.float64, **recipe):
    """A whole training."""
    torchreid.utils.set_random_seed(3)
    datamanager = TrainDataManager(str(root), "folder", "folder", share=(rank, size), **DATA)
    engine_of = {"softmax": ImageSoftmaxTrainingEngine, "triplet": ImageTripletTrainingEngine}[kind]
    model = AutoReIDNetwork(
        datamanager.num_train_pids, kind, channels=2, layers=(1, 1, 1, 1), drop_path=0.2,
        auxiliary="auxiliary_weight" in recipe,
    )  # fmt: skip
    add_neck(model, neck)
    model.to(dtype)
    if size > 1:
        synchronise_batch_norm(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    engine = type("Training", (InFloat64, engine_of), {})(
        datamanager,
        model,
        optimizer,
        scheduler=build_scheduler(optimizer, "cosine", 1),
        use_gpu=False,
        label_smooth=True,
        distributed=size > 1,
        recipe=Recipe(**recipe),
        **({"weight_x": 0.5} if kind == "triplet" else {}),
    )
    figures = []
    engine.on_step = lambda *args: figures.append(args[3])
    engine.run(str(folder), 1, print_freq=100)
    averaged = engine.average.module.state_dict() if engine.average else {}
    return {"figures": figures, "state": engine.model.state_dict(), "averaged": averaged}


#: name -> what to run and its options; of each, two processes are to do what one does
RUNS = {
    "first order": (searched, {}),
    "second order": (searched, {"order": 2}),
    "gdas": (searched, {"strategy": "gdas"}),
    "drnas, cells computed again": (searched, {"strategy": "drnas", "recomputed": True}),
    "perturbation": (searched, {"selection": "perturbation", "perturbation_batches": 1, "perturbation_steps": 1}),
    "random": (searched_at_random, {}),
    "softmax": (trained, {"kind": "softmax", "auxiliary_weight": 0.4, "grad_clip": 0.5}),
    "triplet": (trained, {"kind": "triplet", "neck": "after", "ema_decay": 0.5}),
}
#: the same in two processes only
OTHER_RUNS = {
    "sum": (searched, {"grad_sync": "sum"}),
    "own statistics": (searched, {"sync": False}),
    "bfloat16": (searched, {"order": 2, "amp": "bfloat16", "dtype": torch.float32}),
}


# -- the pieces -------------------------------------------------------------------------------------------------------


def norms():
    """Batch norms of every kind there is in our networks, in training."""
    without_shift = nn.BatchNorm1d(3)
    without_shift.register_parameter("bias", None)
    return {"plain": nn.BatchNorm2d(3), "without affine": nn.BatchNorm2d(3, affine=False), "neck": without_shift}


def normalised(rank, size):
    """Output, gradients and statistics of two passes of each batch norm over this process's rows."""
    answers = {}
    for name, norm in norms().items():
        generator = torch.Generator().manual_seed(1)
        norm = norm.double()
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.uniform_(0.5, 2.0, generator=generator)
        network = nn.Sequential(norm)
        if size > 1:
            synchronise_batch_norm(network)
        shape = (8, 3) if name == "neck" else (8, 3, 4, 2)
        values = []
        for _ in range(2):
            x, factor = (torch.randn(shape, dtype=torch.float64, generator=generator) * 3 + 5 for _ in range(2))
            rows = slice(8 // size * rank, 8 // size * (rank + 1))
            x = x[rows].requires_grad_()
            y = network(x)
            (y.sin() * factor[rows]).sum().backward()
            values += [y.detach(), x.grad]
        answers[name] = {
            "values": values,
            "parameters": [p.grad for p in network.parameters()],
            "state": network.state_dict(),
            "eval": network.eval()(torch.ones(shape, dtype=torch.float64)).detach(),
        }
    return answers


def pieces(rank, size):
    """What the methods of a group answer."""
    everyone, answers = group(True), {}
    x = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).add(10 * rank).requires_grad_()
    joined, (identities,) = everyone.joined((x, [torch.tensor([rank, rank, 7])]))
    joined.pow(2).sum().backward()
    answers["joined"], answers["identities"], answers["back"] = joined.detach(), identities, x.grad
    mixed = [torch.full((2, 2), float(rank)), torch.tensor([1.0 + rank], dtype=torch.float64), torch.tensor(3.0 * rank)]
    answers["mean"], answers["sum"] = everyone.reduced(mixed), Group("sum").reduced(mixed)
    answers["any"] = [everyone.any(rank == 1), everyone.any(False), everyone.any(True)]
    answers["from first"] = everyone.from_first(lambda: {"x": torch.arange(3), "made by": rank})
    torch.manual_seed(4)
    answers["drawn"], answers["next"] = draw_rows(lambda rows: torch.rand(rows, 2), 3), torch.rand(1)
    everyone.agree()
    everyone.check_same("now", alphas=[torch.ones(2), torch.tensor(3), torch.zeros(1).expand(4)], genotype="one")
    answers["errors"] = errors = []
    for contents in ({"alphas": [torch.full((2,), 1.0 + rank * 1e-7)]}, {"same": "x", "genotype": f"{rank}"}):
        errors.append(caught(lambda contents=contents: everyone.check_same("after epoch 3", **contents)))
    errors.append(caught(lambda: everyone.agree(ValueError("a fault") if rank == 1 else None)))

    def block():
        with everyone.together(), everyone.together():
            if rank == 1:
                raise SharedError.__base__("a mistake, é")

    errors.append(caught(block))
    answers["first fails"] = caught(lambda: everyone.from_first(lambda: 1 / 0))
    everyone.agree()  # they are in step again
    return answers


def caught(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def mishaps(root, folder, rank, size):
    """How each process ends when one of them meets something."""
    answers = {}
    engine = search_engine(root, rank, size, dtype=torch.float32)
    read, reads = type(engine.train_loader.images).__getitem__, []

    def torn(images, index):
        reads.append(index)
        if rank == 1 and len(reads) == 15:  # in the second step
            return SharedError.__base__("cannot read the image x.jpg")
        return read(images, index)

    type(engine.train_loader.images).__getitem__ = torn
    try:
        answers["torn"] = caught(lambda: engine.run(str(folder / "torn"), EPOCHS, print_freq=100))
    finally:
        type(engine.train_loader.images).__getitem__ = read

    engine = search_engine(root, rank, size, dtype=torch.float32)

    def drift(epoch, *_):
        if rank == 1:
            engine.model.architecture.normal.data[0, 0] += 1e-3

    engine.on_step = drift
    answers["drift"] = caught(lambda: engine.run(str(folder / "drift"), EPOCHS, print_freq=100))
    answers["drift wrote"] = sorted(path.name for path in (folder / "drift").glob("*"))

    engine = search_engine(root, rank, size, dtype=torch.float32)

    def stop(epoch, batch, *_):
        engine.stop_requested = (epoch, batch) == (0, 1) and rank == 1

    engine.on_step = stop
    try:
        engine.run(str(folder / "stopped"), EPOCHS, print_freq=100)
    except Interrupted as interrupted:
        answers["stopped"] = str(interrupted)
        answers["batch"] = load_checkpoint(interrupted.path)["loop"]["batch"]
    engine = search_engine(root, rank, size, dtype=torch.float32)
    torch.manual_seed(90 + rank)
    start = engine.resume(folder / "stopped" / "checkpoint.pth")
    engine.run(str(folder / "stopped"), EPOCHS, start, print_freq=100)
    answers["resumed"] = engine.model.state_dict()
    engine = search_engine(root, rank, size, dtype=torch.float32)
    engine.run(str(folder / "through"), EPOCHS, print_freq=100)
    answers["through"] = engine.model.state_dict()

    engine = search_engine(root, rank, size, dtype=torch.float32)
    engine.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights, moved = engine.model.weights(), []
    if rank == 1:  # as float16 might do to one of them
        weights[0].register_hook(lambda gradient: gradient * float("inf") if len(moved) == 1 else None)
    engine.on_step = lambda *_: moved.append([p.detach().clone() for p in engine.model.parameters()])
    engine.run(str(folder / "overflow"), 1, print_freq=100)
    same = [
        [torch.equal(a, b) for a, b in zip(one, two, strict=True)] for one, two in zip(moved, moved[1:], strict=False)
    ]
    answers["stood still"] = [all(each) for each in same]
    answers["scale"] = engine.precision.scaler.get_scale()

    engine = search_engine(root, rank, size, dtype=torch.float32)
    engine._write_results = lambda: (_ for _ in ()).throw(OSError("no space left"))
    answers["disk full"] = caught(lambda: engine.run(str(folder / "full"), EPOCHS, print_freq=100))
    answers["unsynchronised"] = len(unsynchronised_buffers(engine.model))
    return answers


def going_on(root, folder, rank, size):
    """Searches that stop after their first step, and go on in as many processes or in another number."""

    def first_step(name, *world):
        engine = search_engine(root, *world)
        engine.on_step = lambda *_: setattr(engine, "stop_requested", True)
        try:
            engine.run(str(folder / name), EPOCHS, print_freq=100)
        except Interrupted as interrupted:
            return interrupted.path
        raise AssertionError("it has not stopped")

    def rest(path, *world):
        engine = search_engine(root, *world)
        torch.manual_seed(90 + rank)
        start = engine.resume(path)
        figures, alphas = [], []
        engine.alpha_optimizer.register_step_pre_hook(
            lambda *_: alphas.append([p.grad.clone() for p in engine.model.alphas()])
        )
        engine.on_step = lambda *args: figures.append(args[3])
        engine.run(str(folder / "-".join([Path(path).parent.name, str(world[1])])), EPOCHS, start, print_freq=100)
        return {"figures": figures, "gradients": alphas, "state": engine.model.state_dict()}

    answers = {}
    by_both = first_step("both", rank, size)
    if rank == 0:
        by_one = first_step("one", 0, 1)
        answers["one, then one"], answers["two, then one"] = rest(by_one, 0, 1), rest(by_both, 0, 1)
    torch.distributed.barrier()
    answers["one, then two"] = rest(folder / "one" / "checkpoint.pth", rank, size)
    answers["two, then two"] = rest(by_both, rank, size)
    return answers


#: what a test may ask two processes to do
TASKS = {
    "going on": going_on,
    "pieces": lambda root, folder, *world: {"norms": normalised(*world), "pieces": pieces(*world)},
    "runs": lambda root, folder, *world: {
        name: run(root, folder / name, *world, **options) for name, (run, options) in (RUNS | OTHER_RUNS).items()
    },
    "mishaps": mishaps,
}


def work(rank, size, root, folder, task):
    """One of two processes."""
    torch.set_num_threads(1)
    pictures.draw_nothing()
    root, folder = Path(root), Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    kept, joined = group(True), weakref.ref(torch.distributed.group.WORLD)
    try:
        answers = TASKS[task](root, folder, rank, size)
    finally:
        leave_group()
    # PyTorch aborts a process that still holds its group when it ends.
    answers["freed"] = kept.rank == rank and joined() is None
    torch.save(answers, folder / f"{rank}.pt")
