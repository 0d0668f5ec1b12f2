"""Searches a network architecture for person re-identification (Auto-ReID, ICCV 2019)."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid

from ..checkpoint import LATEST, Checkpoint, load_checkpoint, newest_checkpoint
from ..config.build import (
    arguments_of,
    budget_limits,
    evolution_kwargs,
    network_kwargs,
    optimizer_kwargs,
    rungs,
    scheduler_kwargs,
    searchdata_kwargs,
    selects_by_halving,
    settings_of_result,
    shape_kwargs,
    traindata_kwargs,
    warmup_epochs,
)
from ..config.check import check_train_config
from ..config.read import get, load_config, plain_config
from ..data import SearchDataManager, TrainDataManager
from ..engine import Annealing, ImageAutoReIDSearchEngine, ImageCandidateSearchEngine, build_scheduler
from ..engine.run_folder import bring_history, check_run_folder, claim_run_folder, keep_earlier_run
from ..errors import Interrupted, UserError
from ..files import not_writable, write_atomically
from ..genotype import KINDS, Genotype, operation_names
from ..keys import OF_CANDIDATES
from ..parallel.batch_norm import synchronise_batch_norm
from ..parallel.group import group
from ..parallel.launch import OneProcess, first_process_first, torchrun_processes
from ..provenance import Start, note_start
from ..records import SearchRecord
from ..report import amount, verdict, write_report
from ..report.log import SELECTION, SearchLog, read_log
from ..search.alpha_optimizer import build_alpha_optimizer
from ..search.budget import UNITS, Budget
from ..search.cost import CostTable, LatencyTable, NetworkShape, measure_latency
from ..search.losses import ALPHA_LOSSES, RetrievalLoss
from ..search.plans import Evolution, EvolutionPlan, Plan, RungPlan
from ..search.predictor import Predictor, PredictorPlan
from ..search.schedule import Schedule
from ..search.selection import draw_from_alphas, draw_genotype, propose
from ..search.study import Study, StudyPlan, shown
from ..space.neck import add_neck
from ..space.networks import AutoReIDNetwork, AutoReIDSearchNetwork
from .console import StepBar, TimeLeft, begin_log, details_of, stop_on_signals
from .costs import count_costs, count_network
from .options import told_once
from .origin import IMAGES, SAME_DATA

_LOGGER = logging.getLogger("torchreid_autoreid.search")


LATENCIES = "latency.json"  # in the log folder


def main(args: argparse.Namespace) -> int:
    cfg = args.cfg
    with told_once():
        check_files(cfg, args.checkpoint)
    device = "cuda" if cfg.use_gpu and torch.cuda.is_available() else "cpu"
    with torchrun_processes(device) as world:
        search(cfg, args.checkpoint, torch.device(device), world)
    return 0


def check_files(cfg: Any, resume: Checkpoint | None) -> None:
    """Refuses files that would be moved away with the log of an earlier run, and a folder that cannot be written."""
    inputs = {"search.budget.latency_table": cfg.search.budget.latency_table, "data.root": cfg.data.root}
    check_run_folder(Path(cfg.data.save_dir), None if resume is None else resume.path, inputs)


def search(cfg: Any, resume: Checkpoint | None, device: torch.device, world: OneProcess) -> None:
    """Searches in all processes; the first one writes and tells, nothing before everything is checked."""
    everyone, save_dir = group(world.size > 1), Path(cfg.data.save_dir)
    by_candidates = cfg.search.strategy in OF_CANDIDATES
    if cfg.search.study and world.size > 1:
        raise UserError(
            "search.study is shared by commands that train a network each, and torchrun starts processes that train "
            "one together; start the command several times instead"
        )
    recipe: Any = candidate_recipe(cfg) if by_candidates or selects_by_halving(cfg) else None
    with everyone.together():  # a mistake that one of them finds ends them all
        log = begin_log(world.rank)
        if log and not cfg.search.study:
            claim_run_folder(save_dir)
        if world.size > 1:
            _LOGGER.info("%d processes, each with %d images of a batch", world.size, cfg.train.batch_size // world.size)
        latencies = find_latencies(cfg, resume, device, world)
    latencies = latencies_for_all(cfg, latencies, world)
    with everyone.together():
        budget = build_budget(cfg, latencies)
        if budget is not None:
            _LOGGER.info("%s", describe_budget(budget))
        torch.backends.cudnn.deterministic = True  # one seed fixes everything, on a GPU too
        with first_process_first(world), details_of(log):
            share = (world.rank, world.size)
            # Of the selection that follows the alphas: a mistake in it ends the search now.
            candidates = candidate_data(cfg, share) if selects_by_halving(cfg) else None
            torchreid.utils.set_random_seed(cfg.train.seed)
            datamanager: Any = (
                candidate_data(cfg, share)
                if by_candidates
                else SearchDataManager(**searchdata_kwargs(cfg), share=share)
            )
    everyone.check_same("at the start", SAME_DATA, training_images=datamanager.trained_images)
    with everyone.together():
        settings = settings_of_result(cfg) | {IMAGES: datamanager.trained_images}
        engine: Any
        if by_candidates:
            settings["search.recipe"] = settings_of_result(recipe)  # what the file says now, whatever its name
            study = Study(cfg.search.study, settings) if cfg.search.study else None
            plan, blind = build_plan(cfg, budget, latencies, study)
            engine = build_candidate_engine(cfg, recipe, datamanager, device, world, budget, plan, blind)
        else:
            engine = build_engine(cfg, datamanager, device, world, budget)
        engine.settings = settings
        written = cfg.clone()
        written.search.study = shown(cfg.search.study)
        engine.configuration = plain_config(written)
        start_epoch, origin = (0, None) if resume is None else (engine.resume(resume), resume.path)
        if log:  # from here on the run writes
            if cfg.search.study:
                engine.shared_folder = save_dir / "candidates"
                save_dir = worker_folder(save_dir, origin)
            keep_earlier_run(save_dir, origin)
            log.write_into(save_dir, "search")
            if latencies is not None:
                latencies.save(save_dir / LATENCIES)
            if origin:
                bring_history(save_dir, origin)
            note_start(
                save_dir, described_data(datamanager), Start.now(start_epoch + 1, device_in_words(device), world.size)
            )
            write_atomically(
                save_dir / "config.yaml", lambda name: Path(name).write_text(written.dump(), encoding="utf-8")
            )
    epochs = engine.plan.total_epochs if by_candidates else cfg.train.max_epoch
    on_terminal = sys.stderr.isatty()
    if world.rank == 0:
        engine.on_step = StepBar(start_epoch, epochs) if on_terminal else None
        engine.on_epoch = EpochLog()
    stop_on_signals(engine)
    genotype = engine.run(
        save_dir=str(save_dir),
        max_epoch=epochs,
        start_epoch=start_epoch,
        print_freq=cfg.train.print_freq,
        eval_freq=cfg.test.eval_freq,
        dist_metric=recipe.test.dist_metric if by_candidates else cfg.test.dist_metric,
        normalize_feature=recipe.test.normalize_feature if by_candidates else cfg.test.normalize_feature,
    )
    if candidates is not None:
        genotype = select_by_halving(cfg, recipe, candidates, engine, device, world, budget, resume)
    if cfg.search.study:
        tell_study(Path(cfg.data.save_dir), engine.plan, genotype)
    with everyone.together():
        if world.rank == 0 and (save_dir / "history.jsonl").exists():
            report = write_report(save_dir, costs=count_costs(cfg, genotype))
            _LOGGER.info("%s", summary(cfg, genotype, read_log(save_dir), report))


def described_data(datamanager: Any) -> dict[str, str]:
    """What the report says of the images: counts of what is trained on, and of what retrieval is measured on."""
    measured = getattr(datamanager, "held_out_loaders", None) or datamanager.validation_loaders
    query, gallery = (measured[part].dataset.data for part in ("query", "gallery"))
    people = len({pid for _, pid, _, _ in query})
    found = {
        "training images": datamanager.trained_images,
        "held-out retrieval": f"{len(query)} queries of {people} identities, {len(gallery)} gallery images",
    }
    if halves := getattr(datamanager, "split_summary", None):
        for half in ("w", "alpha"):
            found[f"{half} half"] = f"{halves[f'{half}_images']} images of {halves[f'{half}_identities']} identities"
    return found


def device_in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"computing on the CPU, threads: {torch.get_num_threads()}"


def worker_folder(save_dir: Path, resume: Path | None) -> Path:
    """The log folder of one worker of a study: that of the checkpoint, or a new one within ``data.save_dir``."""
    if resume is not None and resume.resolve().parent.parent == save_dir.resolve():
        return resume.parent
    for number in count(1):
        place = save_dir / f"worker-{number}"
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise not_writable(save_dir, error) from None
        return place
    raise AssertionError


def tell_study(save_dir: Path, plan: StudyPlan, genotype: Genotype) -> None:
    """The answer of all workers so far, beside their folders."""
    write_atomically(save_dir / "genotype.json", genotype.save)
    left = plan.running()
    _LOGGER.info(
        "the study: %s has the best genotype of all workers%s",
        save_dir / "genotype.json",
        f" so far; {left} trials have not ended (in training, or of workers that were killed)" if left else "",
    )


def find_latencies(cfg: Any, resume: Checkpoint | None, device: torch.device, world: OneProcess) -> LatencyTable | None:
    """What a limit on the latency needs: read, or measured by the first process alone."""
    if not needs_latencies(cfg):
        return None
    shape, operations = NetworkShape(**shape_kwargs(cfg)), operation_names(cfg.search.space)
    if resume is not None:
        return LatencyTable.load(resume.path.parent / LATENCIES, shape, operations)
    if cfg.search.budget.latency_table:
        return LatencyTable.load(cfg.search.budget.latency_table, shape, operations)
    return None if world.rank else measure_latency(shape, operations, device)


def needs_latencies(cfg: Any) -> bool:
    return bool(cfg.search.budget.latency_ms) or cfg.search.second_objective == "latency_ms"


def latencies_for_all(cfg: Any, found: LatencyTable | None, world: OneProcess) -> LatencyTable | None:
    """The table of the first process, in all of them."""
    if not needs_latencies(cfg) or world.size == 1:
        return found
    shape, operations = NetworkShape(**shape_kwargs(cfg)), operation_names(cfg.search.space)
    keys = [(name, place) for name in operations for place in dict.fromkeys(place for _, _, place in shape.places())]
    values = np.zeros(2 + len(keys))
    if world.rank == 0:
        assert found is not None
        values[:] = [found.fixed_part, found.mixed, *(found.milliseconds[key] for key in keys)]
    fixed_part, mixed, *milliseconds = world.broadcast(values, 0).tolist()
    device = found.device if found is not None else "as in the first process"
    return LatencyTable(shape, tuple(operations), device, fixed_part, mixed, dict(zip(keys, milliseconds, strict=True)))


def build_budget(cfg: Any, latencies: LatencyTable | None) -> Budget | None:
    limits = budget_limits(cfg)
    if not limits:
        return None
    tables = {measure: cost_table(cfg, measure, latencies) for measure in limits}
    return Budget(limits, tables, None if cfg.search.skip_cap < 0 else cfg.search.skip_cap)


def cost_table(cfg: Any, measure: str, latencies: LatencyTable | None) -> CostTable:
    """What genotypes cost in the network that ``search.budget`` describes."""
    if measure == "latency_ms":
        assert latencies is not None
        return CostTable.latency(latencies)
    make = CostTable.parameters if measure == "params" else CostTable.macs
    return make(NetworkShape(**shape_kwargs(cfg)), operation_names(cfg.search.space))


def build_plan(
    cfg: Any, budget: Budget | None, latencies: LatencyTable | None, study: Study | None
) -> tuple[Plan, range]:
    """Of a strategy that trains candidates; and which of the first rung are blind draws."""
    accepts, operations = (lambda _: True) if budget is None else budget.accepts, operation_names(cfg.search.space)
    seed, blocks, steps = cfg.train.seed, cfg.autoreid.blocks, rungs(cfg)
    measure, cost = cfg.search.second_objective, None
    if measure != "none":
        cost = cost_table(cfg, measure, latencies).cost

    def draw(index: int) -> Genotype:
        return draw_genotype(operations, blocks, f"random search {seed} {index}", accepts, f"random_{index}")

    evolution = Evolution(**evolution_kwargs(cfg)) if cfg.search.strategy == "evolution" else None
    predictor = None
    if cfg.search.strategy == "predictor":
        predictor = Predictor(cfg.search.predictor_draws, draw, seed, cost)
    if study is not None:
        return StudyPlan(study, steps, draw, operations, blocks, seed, evolution, predictor, accepts, cost), range(0)
    if predictor is not None:
        return PredictorPlan(steps[0].candidates, steps[0].epochs, predictor), range(predictor.draws)
    if evolution is not None:
        return EvolutionPlan(evolution, steps, draw, operations, seed, accepts, cost), range(0)
    return RungPlan(steps, draw, cost), range(steps[0].candidates)


def describe_budget(budget: Budget) -> str:
    lines, free = [], budget.free()
    for name, limit in budget.limits.items():
        table = budget.tables[name]
        bounds = f"networks of the search space have {amount(table.smallest())} to {amount(table.largest())}"
        binds = "; the limit does not bind" if name in free else ""
        lines.append(f"budget: at most {amount(limit)} {UNITS[name]}; {bounds}{binds}")
    return "\n".join(lines)


def build_engine(
    cfg: Any, datamanager: SearchDataManager, device: torch.device, world: OneProcess, budget: Budget | None
) -> ImageAutoReIDSearchEngine:
    model = placed(AutoReIDSearchNetwork(datamanager.num_train_pids, **network_kwargs(cfg)), cfg, device, world)
    # build_optimizer takes every parameter of the module it is given: one that holds the weights alone.
    optimizer = torchreid.optim.build_optimizer(torch.nn.ParameterList(model.weights()), **optimizer_kwargs(cfg))
    steps = (cfg.train.max_epoch - warmup_epochs(cfg)) * len(datamanager.train_loader)
    alpha_optimizer = build_alpha_optimizer(
        model, steps, cfg.search.alpha_lr, cfg.search.alpha_betas, cfg.search.alpha_weight_decay
    )
    parts = {
        "scheduler": build_scheduler(optimizer, min_lr=cfg.search.min_lr, **scheduler_kwargs(cfg)),
        "loss": retrieval_loss(cfg),
        "alpha_loss": retrieval_loss(cfg, cfg.search.alpha_loss),
        "schedule": Schedule(**arguments_of(Schedule, cfg.search)),
        "warmup_epochs": warmup_epochs(cfg),
    }
    return ImageAutoReIDSearchEngine(
        datamanager,
        model,
        optimizer,
        alpha_optimizer,
        budget=budget,
        distributed=world.size > 1,
        use_gpu=cfg.use_gpu,
        **(arguments_of(ImageAutoReIDSearchEngine, cfg.search) | parts),
    )


def candidate_data(cfg: Any, share: tuple[int, int]) -> TrainDataManager:
    """All images of most identities to train on, and the other identities to rank by."""
    return TrainDataManager(
        **(traindata_kwargs(cfg) | {"held_out": cfg.search.held_out}), share=share, held_out_key="search.held_out"
    )


def select_by_halving(
    cfg: Any,
    recipe: Any,
    datamanager: TrainDataManager,
    engine: ImageAutoReIDSearchEngine,
    device: torch.device,
    world: OneProcess,
    budget: Budget | None,
    resume: Checkpoint | None,
) -> Genotype:
    """Lets what the alphas propose and a few blind draws compete as derived networks; the best one is the answer.

    The competition has a run folder of its own, ``save_dir/selection``, in which an interrupted one goes on. One whose
    alphas have been trained on since is kept beside it.
    """
    save_dir, everyone = Path(cfg.data.save_dir), engine.group
    folder = save_dir / SELECTION
    _LOGGER.info("selection by halving: the log of the candidates is in %s", folder)
    proposals, blind = proposals_of(cfg, engine, budget)
    proposed = [genotype.to_dict() for genotype in proposals]
    with everyone.together():
        found = None if resume is None else newest_checkpoint(folder)
        made_with = {} if found is None else load_checkpoint(found[0], ("settings",))["settings"]
        earlier = isinstance(made_with, Mapping) and made_with.get("proposals", proposed) != proposed
    with everyone.together():
        if earlier:
            found = None
            if world.rank == 0:
                kept = next(path for n in count(1) if not (path := folder.with_name(f"{SELECTION}-{n}")).exists())
                folder.rename(kept)
                _LOGGER.info("the alphas propose other candidates than before: the earlier selection is in %s", kept)
    with everyone.together():
        plan = RungPlan(rungs(cfg), proposals.__getitem__)
        chooser = build_candidate_engine(cfg, recipe, datamanager, device, world, budget, plan, blind)
        chooser.settings = engine.settings | {
            "search.recipe": settings_of_result(recipe),
            "proposals": proposed,
        }
        chooser.configuration = engine.configuration
        if found and found[1] and world.rank == 0:
            _LOGGER.warning("%s", found[1])
        start_epoch = chooser.resume(found[0]) if found else 0
    chooser.on_step = StepBar(start_epoch, plan.total_epochs) if engine.on_step is not None else None
    chooser.on_epoch = EpochLog() if engine.on_epoch is not None else None
    stop_on_signals(chooser)
    try:
        chosen = chooser.run(
            save_dir=str(folder),
            max_epoch=plan.total_epochs,
            start_epoch=start_epoch,
            print_freq=cfg.train.print_freq,
            eval_freq=cfg.test.eval_freq,
            dist_metric=recipe.test.dist_metric,
            normalize_feature=recipe.test.normalize_feature,
        )
    except Interrupted:  # the whole search goes on from its own checkpoint, be it in the folder that it went on from
        latest = save_dir / LATEST
        raise Interrupted(str(latest if resume is None or latest.exists() else resume.path)) from None
    with everyone.together():
        if world.rank == 0:
            write_atomically(save_dir / "genotype.json", chosen.save)
    return chosen


def proposals_of(
    cfg: Any, engine: ImageAutoReIDSearchEngine, budget: Budget | None
) -> tuple[list[Genotype], list[int]]:
    """The candidates of a selection by halving, and which of them are blind draws; they depend on alphas and seed."""
    model, cap = engine.model, cfg.search.skip_cap
    probabilities = {kind: rows.double().tolist() for kind, rows in model.probabilities().items()}
    edges = {kind: model.strategy.edge_weights(model.architecture.of(kind)[1]) for kind in probabilities}
    factors = {kind: weights.detach().double().tolist() for kind, weights in edges.items() if weights is not None}
    seed, blocks = cfg.train.seed, model.blocks

    def within(genotype: Genotype) -> bool:
        return budget is None or budget.accepts(genotype)

    def drawn(index: int) -> Genotype:
        text = f"proposal {seed} {index}"
        return draw_from_alphas(
            probabilities, model.operations, blocks, text, within, factors, f"proposed_{index}", skip_cap=cap
        )

    def blind(index: int) -> Genotype:
        def keeps(genotype: Genotype) -> bool:
            return within(genotype) and (cap < 0 or genotype.count("skip_connect")["normal"] <= cap)

        return draw_genotype(model.operations, blocks, f"blind {seed} {index}", keeps, f"blind_{index}")

    return propose(engine.genotype(), drawn, blind, cfg.search.rung_candidates[0])


def build_candidate_engine(
    cfg: Any,
    recipe: Any,
    datamanager: TrainDataManager,
    device: torch.device,
    world: OneProcess,
    budget: Budget | None,
    plan: Plan,
    blind: Sequence[int],
) -> ImageCandidateSearchEngine:
    """Networks as wide and as deep as the search network, trained as the recipe says."""

    def train(genotype: Genotype) -> tuple[Any, torch.optim.Optimizer]:
        own = cfg.autoreid
        network = AutoReIDNetwork(
            datamanager.num_train_pids,
            "triplet",
            genotype,
            own.channels,
            own.layers,
            own.parts,
            recipe.autoreid.drop_path,
            last_norm=own.last_norm,
        )
        model = placed(add_neck(network, recipe.recipe.neck), cfg, device, world)
        return model, torchreid.optim.build_optimizer(model, **optimizer_kwargs(recipe))

    weights = recipe.loss.triplet
    smoothing = 0.1 if recipe.loss.softmax.label_smooth else 0.0
    loss = RetrievalLoss.weighted(weights.weight_x, weights.weight_t, weights.margin, smoothing)
    warmup = recipe.recipe.warmup_epochs / recipe.train.max_epoch
    return ImageCandidateSearchEngine(
        datamanager,
        train,
        operation_names(cfg.search.space),
        cfg.autoreid.blocks,
        plan,
        cfg.train.seed,
        blind,
        cfg.search.rank_by,
        loss,
        Annealing(warmup, recipe.recipe.warmup_factor, recipe.recipe.min_lr / recipe.train.lr),
        recipe.recipe.grad_clip,
        budget,
        checkpoint_every=cfg.search.checkpoint_every,
        amp=cfg.search.amp,
        distributed=world.size > 1,
        grad_sync=cfg.search.grad_sync,
        use_gpu=cfg.use_gpu,
    )


def candidate_recipe(cfg: Any) -> Any:
    """The configuration that candidates are trained by.

    Raises:
        UserError: if it cannot be read, or trains without the triplet loss or with rates by layer.
    """
    recipe = load_config(cfg.search.recipe)
    check_train_config(recipe)
    for key, fits in (("loss.name", recipe.loss.name == "triplet"), ("train.staged_lr", not recipe.train.staged_lr)):
        if not fits:
            raise UserError(
                f"search.recipe {cfg.search.recipe} has {key} {get(recipe, key)}, which candidates are not trained "
                "with; give another recipe"
            )
    return recipe


def placed(model: torch.nn.Module, cfg: Any, device: torch.device, world: OneProcess) -> Any:
    # Channels-last is 1.4 times as fast on a CPU, with the same result up to rounding.
    model = model.to(device) if device.type == "cuda" else model.to(memory_format=torch.channels_last)
    return synchronise_batch_norm(model) if world.size > 1 and cfg.search.sync_batch_norm else model


def retrieval_loss(cfg: Any, form: str = "published") -> RetrievalLoss:
    smoothing = 0.1 if cfg.loss.softmax.label_smooth else 0.0
    return ALPHA_LOSSES[form](cfg.search.loss_lambda, cfg.loss.triplet.margin, smoothing)


class EpochLog:
    """Two lines an epoch on the terminal; all figures, with the table of the alphas, in the log file alone."""

    def __init__(self) -> None:
        self.time_left, self.best = TimeLeft(), 0.0

    def __call__(self, record: SearchRecord) -> None:
        self.best = max(self.best, record.retrieval["mAP"] if record.retrieval else 0.0)
        _LOGGER.info("%s: %s\n  %s", self.time_left(record), _what_changed(record), self._how_good(record))
        _LOGGER.debug("%s", "\n".join(_details(record)))

    def _how_good(self, record: SearchRecord) -> str:
        losses = f"loss {record.w['loss']:.3f} (w)" + (f", {record.alpha['loss']:.3f} (alphas)" if record.alpha else "")
        if (found := record.retrieval) is None:
            return losses
        return (
            f"held out: mAP {found['mAP']:.1%} (best {self.best:.1%}), rank-1 {found['rank1']:.1%}, "
            f"{found['num_valid_queries']} queries; {losses}"
        )


def _what_changed(record: SearchRecord) -> str:
    if (candidate := record.candidate) is not None:
        parent = "" if candidate.parent is None else f", from the weights of candidate {candidate.parent}"
        return f"candidate {candidate.number} in rung {candidate.rung}{parent}"
    if record.alpha is None:
        return "the weights alone, the alphas are frozen in the warm-up"
    none, skips = ([f"{values[kind]:.2g}" for kind in KINDS] for values in (record.none_mass, record.skips))
    changed = record.diagnosis.get("changed_edges")
    edges = "" if changed is None else f"{changed} of {4 * record.genotype.blocks} edges changed, "
    return (
        f"{edges}probability of none {' and '.join(none)}, skip connections {' and '.join(skips)} (normal and "
        "reduction cell)"
    )


def _details(record: SearchRecord) -> Iterator[str]:
    yield f"epoch {record.epoch}: learning rates {record.lr['w']:.5f} (w) {record.lr['alpha']:.5f} (alpha)"
    yield f"  w half      {_figures(record.w)}"
    if record.alpha:
        yield f"  alpha half  {_figures(record.alpha)}"
    if record.scheduled:
        yield "  scheduled   " + ", ".join(f"{name} {value:.4g}" for name, value in record.scheduled.items())
    for name, cost in (record.cost or {}).items():
        figures = [f"{amount(cost['derived'])} derived", f"{amount(cost['genotype'])} in the genotype"]
        if cost["expected"] is not None:
            figures = [f"{amount(cost['expected'])} expected", *figures, f"weight {cost['weight']:.3g}"]
        yield f"  budget      {', '.join(figures)}; at most {amount(cost['limit'])} {UNITS[name]}"
    for kind in KINDS:
        yield f"  {kind:<10}  {describe(record.genotype, kind)}"
        if record.candidate is None:
            yield from (f"    edge {i:>2}: {row}" for i, row in enumerate(_softmax_rows(record, kind)))


def _figures(part: Mapping[str, float]) -> str:
    return (
        f"loss {part['loss']:.4f} (softmax {part['loss_softmax']:.4f}, triplet {part['loss_triplet']:.4f}), "
        f"top-1/5/10 {part['top1']:.1%} {part['top5']:.1%} {part['top10']:.1%}"
    )


def _softmax_rows(record: SearchRecord, kind: str) -> list[str]:
    return [
        " ".join(f"{name} {value:.3f}" for name, value in zip(record.operations, row, strict=True))
        for row in record.probabilities[kind]
    ]


def describe(genotype: Genotype, kind: str) -> str:
    cell = genotype.reduce if kind == "reduce" else genotype.normal
    return " | ".join(" ".join(f"{name}<-{source}" for name, source in block) for block in cell)


def summary(cfg: Any, genotype: Genotype, log: SearchLog, report: Path) -> str:
    """What the search has found, what it costs, how far to trust it, and the command that trains it."""
    shape = NetworkShape(**shape_kwargs(cfg))
    found = count_network(cfg, genotype)
    network = f"{amount(found.params)} {UNITS['params']}, {amount(found.macs)} {UNITS['macs']}"
    words = ["--genotype", log.folder / "genotype.json", "--config-file", cfg.search.recipe, "--root", cfg.data.root]
    words += ["data.height", cfg.data.height, "data.width", cfg.data.width]
    words += ["-s", *cfg.data.sources, "-t", *cfg.data.targets]
    signs = {True: "+", False: "-", None: " "}
    return "\n".join(
        [
            "the search has ended",
            f"  normal cell     {describe(genotype, 'normal')}",
            f"  reduction cell  {describe(genotype, 'reduce')}",
            f"  network         {network} of {shape.height} x {shape.width}, at {shape.channels} channels "
            f"and {sum(shape.layers)} cells",
            *_measured(log.records),
            f"  genotype        {log.folder / 'genotype.json'}",
            f"  report          {report}",
            *(f"  {signs[one.speaks_for]} {one.text}" for one in verdict(log.records, log.selection, genotype)),
            f"to train it: autoreid train {shlex.join(map(str, words))}",
        ]
    )


def _measured(records: Sequence[SearchRecord]) -> Iterator[str]:
    """The last measurement and the best one, in a line; nothing without any."""
    measured = [(record.epoch, record.retrieval) for record in records if record.retrieval]
    if measured:
        (epoch, last), (best_epoch, best) = measured[-1], max(measured, key=lambda found: found[1]["mAP"])
        yield (
            f"  held out        mAP {last['mAP']:.1%} in epoch {epoch} (best {best['mAP']:.1%}, epoch {best_epoch}), "
            f"rank-1 {last['rank1']:.1%}" + ("" if records[-1].candidate else ", of the search network")
        )
