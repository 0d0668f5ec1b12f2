"""A truth set: what genotypes of the search space are worth once they have been trained to the end.

``projects/benchmarks/truth.py`` makes one. With it a search strategy is tested in seconds: it asks for the figures of a
genotype instead of training it.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from ..errors import UserError, short
from ..files import as_path, write_atomically
from ..genotype import KINDS, Genotype
from .predictor import OperationCounts

__all__ = ["Trained", "TruthSet", "Worth", "signal_summary", "summary"]

#: the truth set that comes with the package
OWN = Path(__file__).with_name("truth.json")

_VERSION = 1
_MAX_FILE_BYTES = 8 << 20  # a network takes some 900 bytes
#: numbers of candidates for which it is told what a search is worth
CANDIDATES = (3, 5, 10, 20)
_FIGURES = ("mAP", "rank1", "mINP")


@dataclass(frozen=True)
class Trained:
    """A network that was trained from scratch and tested.

    Attributes:
        index: of the genotype in the truth set.
        seed: of its weights and batches.
        layers: cells in each of the four stages.
        genotype: its cells.
        mAP, rank1, mINP: on the test set, as fractions.
        params, macs: without the classifier.
        seconds: of the processor, for training and test.
    """

    index: int
    seed: int
    layers: tuple[int, ...]
    genotype: Genotype
    mAP: float
    rank1: float
    mINP: float
    params: int
    macs: int
    seconds: float

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Trained:
        values = dict(row) | {"genotype": Genotype.from_dict(row["genotype"]), "layers": tuple(map(int, row["layers"]))}
        found = cls(**values)
        whole = all(isinstance(number, int) for number in (found.index, found.seed, found.params, found.macs))
        if not whole or not all(0.0 <= float(getattr(found, name)) <= 1.0 for name in _FIGURES):
            raise ValueError(f"network {short(row.get('index'))} has figures out of range")
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"genotype": self.genotype.to_dict(), "layers": list(self.layers)}


@dataclass(frozen=True)
class TruthSet:
    """Trained networks, and how they were trained.

    Attributes:
        about: the recipe, the channels, and the versions of the libraries.
        networks: one for each genotype, seed and depth.
        signals: what costs less than a full training, by name: a figure for the index of each genotype
            (``projects/benchmarks/signals.py``).

    >>> truth = TruthSet.load()
    >>> best = max(truth.means((1, 1, 1, 1)).items(), key=lambda item: item[1])
    """

    about: Mapping[str, Any]
    networks: tuple[Trained, ...]
    signals: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    @classmethod
    def of_rows(
        cls, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], signals: Mapping[str, Any] | None = None
    ) -> TruthSet:
        """Raises ValueError if a row is none."""
        try:
            found = {
                name: {int(index): float(value) for index, value in values.items()}
                for name, values in (signals or {}).items()
            }
            return cls(about, tuple(Trained.from_dict(row) for row in rows), found)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a network or signal lacks or has too much: {error}") from None

    @classmethod
    def load(cls, path: str | Path = OWN) -> TruthSet:
        """Reads a truth set, by default the one that comes with the package.

        Raises:
            UserError: if the file is missing, of another version, or no truth set.
        """
        path = as_path(path)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"cannot read the truth set {path}: it is no ordinary file; give another")
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise UserError(f"{path} has {path.stat().st_size} bytes, which is no truth set")
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the truth set {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise UserError(f"{path} is not JSON; give a file of projects/benchmarks/truth.py") from None
        version = content.get("version") if isinstance(content, dict) else None
        if version != _VERSION:
            raise UserError(
                f"{path} is a truth set of version {short(version)}, and this program reads version {_VERSION}; "
                "make it anew with projects/benchmarks/truth.py"
            )
        try:
            return cls.of_rows(dict(content["about"]), list(content["networks"]), dict(content.get("signals", {})))
        except (AttributeError, KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is no truth set: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes JSON, a network a line."""
        lines = ",\n".join(f"  {json.dumps(network.to_dict())}" for network in self.networks)
        head = f'"version": {_VERSION},\n"about": {json.dumps(dict(self.about))}'
        signals = ",\n".join(f"  {json.dumps(name)}: {json.dumps(dict(own))}" for name, own in self.signals.items())
        text = f'{{{head},\n"signals": {{\n{signals}\n}},\n"networks": [\n{lines}\n]}}\n'
        write_atomically(as_path(path), lambda name: Path(name).write_text(text, encoding="utf-8"))

    def table(self, layers: Sequence[int], figure: str = "mAP") -> tuple[list[int], np.ndarray]:
        """The genotypes' indices and their (G, S) figures, of those that have been trained with all S seeds."""
        own = self._trained(layers, figure)
        seeds = sorted({network.seed for network in own})
        found = {(network.index, network.seed): float(getattr(network, figure)) for network in own}
        indices = sorted({index for index, _ in found})
        while seeds and not any(all((index, seed) in found for seed in seeds) for index in indices):
            seeds.pop()  # a set that is still growing
        complete = [index for index in indices if all((index, seed) in found for seed in seeds)]
        return complete, np.array([[found[index, seed] for seed in seeds] for index in complete])

    def means(self, layers: Sequence[int], figure: str = "mAP") -> dict[int, float]:
        """The mean over the seeds, by index; of all genotypes that have been trained at this depth."""
        own: dict[int, list[float]] = {}
        for network in self._trained(layers, figure):
            own.setdefault(network.index, []).append(float(getattr(network, figure)))
        return {index: statistics.fmean(values) for index, values in own.items()}

    def _trained(self, layers: Sequence[int], figure: str) -> list[Trained]:
        """The networks of a depth; raises a UserError for what is no depth, or a figure that they do not have."""
        if not isinstance(layers, list | tuple):
            raise UserError(f"layers must be the cells of each stage, such as (1, 1, 1, 1), not {short(layers)}")
        if figure not in _FIGURES:
            raise UserError(f"unknown figure {short(figure)}; choose from {', '.join(_FIGURES)}")
        return [network for network in self.networks if network.layers == tuple(layers)]

    def genotype(self, index: int) -> Genotype:
        """Raises KeyError if there is none."""
        for network in self.networks:
            if network.index == index:
                return network.genotype
        raise KeyError(index)


def spread_and_noise(values: np.ndarray) -> tuple[float, float, float]:
    """Of (G, S) figures: the standard deviation between genotypes, that between seeds, and the reliability of a mean.

    One-way random effects: with ``MSB`` the mean square between genotypes and ``MSW`` the one within, the variances are
    ``(MSB - MSW) / S`` and ``MSW``, and the reliability of the mean of S seeds is ``(MSB - MSW) / MSB`` (the intraclass
    correlation ICC(1, S) of Shrout and Fleiss, 1979).
    """
    seeds = values.shape[1]
    between = seeds * values.mean(axis=1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean() if seeds > 1 else float("nan")
    spread = np.sqrt(max(0.0, between - within) / seeds) if seeds > 1 else values.std(ddof=1)
    return float(spread), float(np.sqrt(within)), float(max(0.0, between - within) / between)


def summary(truth: TruthSet) -> str:
    """What a truth set says, in lines of text: percentages of mAP throughout."""
    lines = []
    for layers in sorted({network.layers for network in truth.networks}, key=sum):
        indices, values = truth.table(layers)
        if len(indices) < 3:
            continue
        values = 100.0 * values
        means = values.mean(axis=1)
        lines.append(
            f"{sum(layers)} cells: {len(indices)} genotypes, {values.shape[1]} seeds; mAP {means.mean():.1f}, "
            f"from {means.min():.1f} to {means.max():.1f}"
        )
        if values.shape[1] > 1:
            spread, noise, reliability = spread_and_noise(values)
            lines.append(
                f"  between genotypes ± {spread:.2f}, between seeds ± {noise:.2f}, reliability of a mean "
                f"{reliability:.2f}"
            )
        lines += [f"  {what}: {_cells(truth, index)}" for what, index in _extremes(indices, means)]
        lines += _associations(truth, indices, means)
    return "\n".join(lines)


def signal_summary(truth: TruthSet, layers: Sequence[int] = (1, 1, 1, 1)) -> str:
    """How well each signal ranks the genotypes, in lines of text; percentages of mAP.

    Spearman's correlation with the mean mAP over seeds (95 % interval: 2,000 bootstrap samples of the genotypes), and
    the regret: by how much the genotype that is best by the signal (the best of three) is worse than the best of all.
    Then the same of what :class:`~torchreid_autoreid.search.predictor.OperationCounts` learns of a genotype from the
    signal of all others, and from their full training: noise averages out there, and what a signal prefers stands out.
    Last, by how many points the best of some draws is better than the mean of all, see :class:`Worth`.
    """
    means = truth.means(layers)
    own = {network.index: network for network in truth.networks}
    signals: dict[str, Mapping[int, float]] = dict(truth.signals)
    signals["parameters"] = {index: own[index].params for index in means}
    signals["MACs"] = {index: own[index].macs for index in means}
    for name, values in (dict(truth.signals) | {"full training": means}).items():
        indices = [index for index in values if index in means]
        if len(indices) > 2:
            learned = OperationCounts([own[index].genotype for index in indices], [values[i] for i in indices])
            signals[f"operations by {name} of the others"] = dict(zip(indices, learned.left_out, strict=True))
    worth = Worth.of(truth, layers)
    lines = [f"{len(means)} genotypes of {sum(layers)} cells"]
    for name, values in signals.items():
        indices = [index for index in values if index in means]
        if len(indices) < 5:
            continue
        found = Ranked.of([values[index] for index in indices], [100.0 * means[index] for index in indices])
        lines.append(
            f"  {name}: Spearman {found.correlation:+.2f} [{found.low:+.2f}, {found.high:+.2f}], "
            f"regret {found.top1:.1f}, of the best of three {found.top3:.1f} ({len(indices)} genotypes)"
            + (f"; {_gains(worth, values)}" if worth else "")
        )
    if worth:
        lines.append(f"  a full training: {_gains(worth)}")
    return "\n".join(lines)


def _gains(worth: Worth, signal: Mapping[int, float] | None = None) -> str:
    gains = ", ".join(f"{100 * worth.gain(count, signal):+.1f}" for count in CANDIDATES)
    told = f"the best of {', '.join(map(str, CANDIDATES))} is worth {gains}"
    return told if signal is None else f"{told}, and {100 * worth.gain(9, signal, 3):+.1f} of 9 with 3 trained fully"


@dataclass(frozen=True)
class Worth:
    """What the genotypes of a truth set are worth, as far as their trainings say: normal, with a mean and a spread.

    Attributes:
        means: expected mAP by index, drawn towards that of all genotypes by as much as the noise between seeds demands.
        deviations: how much each may differ from that.
        noise: between seeds.
    """

    means: Mapping[int, float]
    deviations: Mapping[int, float]
    noise: float

    @classmethod
    def of(cls, truth: TruthSet, layers: Sequence[int], figure: str = "mAP") -> Worth | None:
        """``None`` for a truth set in which fewer than three genotypes have a second seed."""
        indices, values = truth.table(layers, figure)
        if len(indices) < 3 or values.shape[1] < 2:
            return None
        spread, noise, _ = spread_and_noise(values)
        found = truth.means(layers, figure)
        seeds = Counter(network.index for network in truth.networks if network.layers == tuple(layers))
        share = {i: spread**2 / (spread**2 + noise**2 / seeds[i]) if spread else 0.0 for i in found}
        mean = statistics.fmean(found.values())
        return cls(
            {i: mean + share[i] * (value - mean) for i, value in found.items()},
            {i: spread * (1.0 - share[i]) ** 0.5 for i in found},
            noise,
        )

    def gain(
        self, candidates: int, signal: Mapping[int, float] | None = None, finalists: int = 1, samples: int = 4000
    ) -> float:
        """How much more than a blind draw the answer of a search is worth, on average over its draws.

        Of so many blind draws, those that are the best by ``signal`` are trained fully, once each, and the best of
        these trainings is the answer; with a single finalist the signal decides alone, and without a signal all are
        trained. Only genotypes that the signal knows are drawn; of fewer than ``candidates`` all are.
        """
        indices = [i for i in self.means if signal is None or i in signal]
        rng, rows = np.random.default_rng(0), np.arange(samples)[:, None]
        own = np.array([self.means[i] for i in indices]), np.array([self.deviations[i] for i in indices])
        worth = own[0] + own[1] * rng.standard_normal((samples, len(indices)))
        trained = worth + self.noise * rng.standard_normal(worth.shape)
        drawn = rng.random(worth.shape).argsort(axis=1)[:, :candidates]
        if signal is not None:  # of equals, those that were drawn first
            signals = np.array([signal[i] for i in indices])[drawn]
            drawn = drawn[rows, (-signals).argsort(axis=1, kind="stable")[:, :finalists]]
        answers = drawn[rows, trained[rows, drawn].argmax(axis=1)[:, None]]
        return float((worth[rows, answers] - worth.mean(axis=1, keepdims=True)).mean())


@dataclass(frozen=True)
class Ranked:
    """How well a signal ranks.

    Attributes:
        correlation: Spearman's, with what it stands for.
        low, high: its 95 % interval.
        top1, top3: the best of all less what the first by the signal is worth, or the best of its first three.
    """

    correlation: float
    low: float
    high: float
    top1: float
    top3: float

    @classmethod
    def of(cls, signal: Sequence[float], worth: Sequence[float], samples: int = 2000) -> Ranked:
        """Of (G,) figures and what G genotypes are worth; the bootstrap has a fixed seed."""
        given, true = np.asarray(signal, dtype=float), np.asarray(worth, dtype=float)
        drawn = np.random.default_rng(0).integers(0, len(given), (samples, len(given)))
        pairs = given[drawn], true[drawn]
        differ = np.logical_and(*((figures != figures[:, :1]).any(axis=1) for figures in pairs))
        found = _correlations(*(figures[differ] for figures in pairs))
        low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (np.nan, np.nan)
        order = np.argsort(-given, kind="stable")
        best = true.max()
        return cls(
            float(spearmanr(given, true).statistic), float(low), float(high),
            float(best - true[order[0]]), float(best - true[order[:3]].max()),
        )  # fmt: skip


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row with the row of the other, (S, G) both, as SciPy has it of a single pair."""
    x, y = (rankdata(figures, axis=1) - (figures.shape[1] + 1) / 2 for figures in (first, second))
    covariance, *variances = (
        np.einsum("sg,sg->s", *pair) * (1 / (x.shape[1] - 1)) for pair in ((x, y), (y, y), (x, x))
    )
    for variance in variances:
        covariance /= np.sqrt(variance)
    return covariance.clip(-1, 1)


def _extremes(indices: list[int], means: np.ndarray) -> list[tuple[str, int]]:
    order = np.argsort(-means, kind="stable")
    best = [(f"best, {means[i]:.1f}", indices[i]) for i in order[:3]]
    return best + [(f"worst, {means[i]:.1f}", indices[i]) for i in order[:-4:-1]]


def _cells(truth: TruthSet, index: int) -> str:
    genotype = truth.genotype(index)
    return "; ".join(
        f"{kind} " + " ".join("+".join(f"{name.split('_')[0]}{source}" for name, source in block) for block in cell)
        for kind, cell in (("normal", genotype.normal), ("reduce", genotype.reduce))
    )


def _associations(truth: TruthSet, indices: list[int], means: np.ndarray) -> list[str]:
    """Spearman's correlation of the mAP with what can be counted in a genotype."""
    genotypes = [truth.genotype(index) for index in indices]
    own = {network.index: network for network in truth.networks}
    counted: dict[str, list[float]] = {
        "parameters": [own[index].params for index in indices],
        "MACs": [own[index].macs for index in indices],
    }
    names = sorted({name for g in genotypes for cell in g.cells for block in cell for name, _ in block})
    for kind in KINDS:
        for name in names:
            counted[f"{name}, {kind}"] = [genotype.count(name)[kind] for genotype in genotypes]
        counted[f"depth, {kind}"] = [depth(getattr(genotype, kind)) for genotype in genotypes]
    found = []
    for name, numbers in counted.items():
        if len(set(numbers)) > 1:
            found.append((float(spearmanr(numbers, means).statistic), name))
    return [f"  {name}: {value:+.2f}" for value, name in sorted(found, key=lambda pair: -abs(pair[0]))]


def depth(cell: Sequence[Any]) -> int:
    """Operations on the longest path through a cell.

    >>> depth(((("sep_conv_3x3", 0), ("skip_connect", 1)), (("sep_conv_3x3", 2), ("sep_conv_3x3", 0))))
    2
    """
    longest = [0, 0]
    for block in cell:
        longest.append(max(longest[source] + (name != "skip_connect") for name, source in block))
    return max(longest)
