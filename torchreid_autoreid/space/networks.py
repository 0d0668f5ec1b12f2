"""One skeleton (ResNet's macro structure with cells for residual layers), and the two networks that fill it.

Auto-ReID, section 3.1 and Figure 1: a stem of a 7x7/2 convolution and a 3x3/2 max pool, four stages of cells, the first
cell of stages 2-4 a reduction that doubles the channels, global average pooling to the feature, a linear classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..errors import UserError, short
from ..genotype import KINDS, Genotype, check_genotype, derive, num_edges, operation_names
from ..limits import check_choice, check_values, is_whole
from .cells import Cell, DerivedCell, SearchCell
from .strategies import STRATEGIES, EpochValues, Mixture, beta_penalty

__all__ = ["ArchitectureParameters", "AutoReIDNetwork", "AutoReIDSearchNetwork"]

# (in_channels of the two inputs, channels, kind, stride, halve_first) -> cell
CellFactory = Callable[[tuple[int, int], int, str, int, bool], Cell]


class Skeleton(nn.Module):
    """What the search network and the derived network share: everything but the cells.

    Args:
        make_cell: builds one cell.
        blocks: blocks of a cell, so that a cell puts out ``blocks * channels``.
        num_classes: training identities.
        loss: ``softmax`` or ``triplet``, torchreid's contract for the output in training.
        channels: C of the first stage.
        layers: cells in each of the four stages.
        last_stride: of the reduction cell of the fourth stage, 2 or 1.
        last_norm: batch norm and ReLU between the last cell and the pooling, as ``lastact`` in the public search
            network of GDAS, whose author is one of Auto-ReID's; the paper's Figure 1 does not show them.
    """

    def __init__(
        self,
        make_cell: CellFactory,
        blocks: int,
        num_classes: int,
        loss: str,
        channels: int,
        layers: Sequence[int],
        last_stride: int = 2,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        _check_shape(loss, channels, layers, num_classes)
        check_choice("autoreid.last_stride", last_stride, "last_stride")
        self.loss = loss
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        cells = []
        before_last = last = channels
        halved = False  # by the cell before
        for stage, depth in enumerate(layers):
            for index in range(depth):
                kind = "reduce" if stage > 0 and index == 0 else "normal"
                stride = 1 if kind == "normal" else last_stride if stage == 3 else 2
                width = channels * 2**stage
                cells.append(make_cell((before_last, last), width, kind, stride, halved))
                before_last, last, halved = last, blocks * width, stride == 2
        self.cells = nn.ModuleList(cells)
        self.layers = tuple(layers)
        self.feature_dim = last
        self.last_norm = nn.BatchNorm2d(last) if last_norm else None
        self.classifier = nn.Linear(last, num_classes)
        self.apply(_initialise_convolution)
        _initialise_classifier(self.classifier)

    def cell_arguments(self) -> Mapping[str, tuple[Any, ...]]:
        """What the forward pass of a normal and of a reduction cell takes besides its two inputs."""
        return {"normal": (), "reduce": ()}

    def run_cell(self, cell: nn.Module, *arguments: Any) -> Tensor:
        """One cell's forward pass."""
        return cell(*arguments)

    def stages(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) images to the outputs of the last cells of the four stages."""
        arguments = self.cell_arguments()
        before_last = last = self.stem(x)
        outputs = []
        for cell in self.cells:
            before_last, last = last, self.run_cell(cell, before_last, last, *arguments[str(cell.kind)])
            outputs.append(last)
        return [outputs[end - 1] for end in accumulate(self.layers)]

    def featuremaps(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to the (B, D, h, w) map that is pooled."""
        return self.activate(self.stages(x)[-1])

    def activate(self, maps: Tensor) -> Tensor:
        """Batch norm and ReLU after the last cell, if the network has them."""
        return maps if self.last_norm is None else F.relu(self.last_norm(maps))

    def forward(self, x: Tensor, return_featuremaps: bool = False) -> Any:
        """torchreid's contract: logits, or (logits, features), in training; (B, D) features in eval mode."""
        maps = self.featuremaps(x)
        return maps if return_featuremaps else self.outputs(maps)

    def outputs(self, maps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What follows the map that is pooled."""
        features = F.adaptive_avg_pool2d(maps, 1).flatten(1)
        if not self.training:
            return features
        logits = self.classifier(features)
        return logits if self.loss == "softmax" else (logits, features)


class AutoReIDNetwork(Skeleton):
    """The network of a genotype: what is trained, evaluated and deployed.

    Args:
        num_classes: training identities.
        loss: ``softmax`` or ``triplet``.
        genotype: the cells; the authors' retrieval cells by default.
        channels: C of the first stage, 64 in the paper.
        layers: cells in each of the four stages, (2, 2, 2, 2) in the paper.
        parts: stripes of the part-aware operation, 4 in the paper.
        drop_path: probability with which a sample's branch is dropped in training.
        last_stride: 1 keeps the third stage's resolution in the fourth, as "Bag of Tricks" (CVPRW 2019) does.
        last_norm: as in :class:`Skeleton`; ``False`` is the paper's form.
        auxiliary: an auxiliary classifier on the third stage (DARTS, section 3.2): a module ``auxiliary`` whose logits
            ``forward(x, return_auxiliary=True)`` returns beside the output in training.

    Shapes: ``(B, 3, H, W)`` to ``(B, D)`` with ``D = 8 * blocks * channels`` (2048 for the paper's network).

    Raises:
        UserError: if an argument is out of range.

    >>> AutoReIDNetwork(10, channels=4).feature_dim
    128
    """

    def __init__(
        self,
        num_classes: int,
        loss: str = "softmax",
        genotype: Genotype | None = None,
        channels: int = 64,
        layers: Sequence[int] = (2, 2, 2, 2),
        parts: int = 4,
        drop_path: float = 0.0,
        last_stride: int = 2,
        auxiliary: bool = False,
        last_norm: bool = True,
    ) -> None:
        genotype = Genotype.load("retrieval") if genotype is None else check_genotype(genotype)
        check_values("autoreid", drop_path=drop_path)

        def make_cell(inputs: tuple[int, int], width: int, kind: str, stride: int, halve_first: bool) -> Cell:
            cell = genotype.reduce if kind == "reduce" else genotype.normal
            return DerivedCell(cell, inputs, width, kind, stride, halve_first, parts, drop_path)

        super().__init__(make_cell, genotype.blocks, num_classes, loss, channels, layers, last_stride, last_norm)
        self.genotype = genotype
        self.auxiliary: nn.Module | None = None
        if auxiliary:
            width = self.feature_dim // 2
            classifier = nn.Linear(width, num_classes)
            _initialise_classifier(classifier)
            self.auxiliary = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)

    def forward(self, x: Tensor, return_featuremaps: bool = False, return_auxiliary: bool = False) -> Any:
        """As :meth:`Skeleton.forward`; with ``return_auxiliary``, ``(that, auxiliary logits)``."""
        if not return_auxiliary:
            return super().forward(x, return_featuremaps)
        if self.auxiliary is None:
            raise UserError("this network has no auxiliary classifier; build it with auxiliary=True")
        _, _, third, last = self.stages(x)
        return self.outputs(self.activate(last)), self.auxiliary(third)


class ArchitectureParameters(nn.Module):
    """The alphas of the two cells: all normal cells share one set, all reduction cells the other.

    Attributes:
        normal, reduce: (E, O) parameters, edges in the order of :func:`genotype.cell_edges`; near zero at the start, so
            that every operation begins with almost the same weight (DARTS: 1e-3 times a normal deviate).
        normal_edges, reduce_edges: (E,) parameters of the edges themselves, likewise, where the strategy has them.
    """

    normal_edges: nn.Parameter | None
    reduce_edges: nn.Parameter | None

    def __init__(self, blocks: int, operations: int, edges: bool = False) -> None:
        super().__init__()
        shape = (num_edges(blocks), operations)
        self.normal = nn.Parameter(1e-3 * torch.randn(shape))
        self.reduce = nn.Parameter(1e-3 * torch.randn(shape))
        for kind in KINDS:
            own = nn.Parameter(1e-3 * torch.randn(shape[0])) if edges else None
            self.register_parameter(f"{kind}_edges", own)

    def of(self, kind: str) -> tuple[nn.Parameter, nn.Parameter | None]:
        """The alphas of a kind of cell: of its operations, and of its edges."""
        return getattr(self, kind), getattr(self, f"{kind}_edges")


class AutoReIDSearchNetwork(Skeleton):
    """The search network (supernet): every edge mixes all candidate operations with weights from the alphas.

    Args:
        num_classes, loss, channels, layers, parts, last_norm: as in :class:`AutoReIDNetwork`.
        blocks: blocks of a cell, 4 in the paper.
        space: ``reid`` (with the part-aware operation) or ``standard`` (without).
        strategy: how alphas become weights, a name in ``STRATEGIES``.
        partial_channels: K of the strategy ``pc_darts``; it divides ``channels``.
        activation_checkpointing: keep no activations within cells, and compute them again for the gradient (Chen et
            al., 2016): the memory of one cell instead of all, for the time of one more forward pass. The result is
            the same.

    Attributes:
        mixtures: override for the strategy's mixing weights (perturbation selection), ``{'normal': …, 'reduce': …}``.

    Raises:
        UserError: if an argument is out of range.

    >>> network = AutoReIDSearchNetwork(10, channels=4, layers=(1, 1, 1, 1), blocks=2)
    >>> [tuple(alpha.shape) for alpha in network.alphas()]
    [(5, 7), (5, 7)]
    """

    def __init__(
        self,
        num_classes: int,
        loss: str = "triplet",
        channels: int = 16,
        layers: Sequence[int] = (2, 2, 2, 2),
        blocks: int = 4,
        parts: int = 4,
        space: str = "reid",
        strategy: str = "darts",
        partial_channels: int = 4,
        activation_checkpointing: bool = False,
        last_norm: bool = True,
    ) -> None:
        operations = operation_names(space)
        check_values("autoreid", blocks=blocks, channels=channels)
        if not isinstance(strategy, str) or strategy not in STRATEGIES:
            raise UserError(f"unknown search strategy {short(strategy)}; choose one of {', '.join(STRATEGIES)}")
        partial = partial_channels if STRATEGIES[strategy].partial else 1
        if partial < 1 or channels % partial:
            raise UserError(f"partial_channels must divide the {channels} channels, which {partial!r} does not")

        def make_cell(inputs: tuple[int, int], width: int, kind: str, stride: int, halve_first: bool) -> Cell:
            return SearchCell(operations, blocks, inputs, width, kind, stride, halve_first, parts, partial)

        super().__init__(make_cell, blocks, num_classes, loss, channels, layers, last_norm=last_norm)
        self.operations = operations
        self.blocks = blocks
        self.strategy = STRATEGIES[strategy](operations)
        self.architecture = ArchitectureParameters(blocks, len(operations), self.strategy.partial)
        self.mixtures: Mapping[str, Mixture] | None = None
        self.activation_checkpointing = activation_checkpointing
        split = {id(p) for p in self.alphas()} | {id(p) for p in self.weights()}
        assert len(split) == len(self.alphas()) + len(self.weights()) == len(list(self.parameters()))

    def alphas(self) -> list[nn.Parameter]:
        """The architecture parameters: normal, then reduce; then those of the edges, if any."""
        return list(self.architecture.parameters())

    def weights(self) -> list[nn.Parameter]:
        """The operation weights: every parameter that is not an alpha."""
        alphas = {id(alpha) for alpha in self.alphas()}
        return [p for p in self.parameters() if id(p) not in alphas]

    def cell_arguments(self) -> dict[str, tuple[Mixture]]:
        # Once a pass, so that all cells of a kind share one draw.
        return {kind: (mixture,) for kind, mixture in (self.mixtures or self.drawn_mixtures(self.training)).items()}

    def run_cell(self, cell: nn.Module, *arguments: Any) -> Tensor:
        if not self.activation_checkpointing or not torch.is_grad_enabled():
            return cell(*arguments)

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), _FrozenStatistics(cell)

        return checkpoint(cell, *arguments, use_reentrant=False, context_fn=contexts)

    def drawn_mixtures(self, training: bool) -> dict[str, Mixture]:
        """What the strategy makes of the alphas, for each kind of cell; a draw in training, of those that draw."""
        return {kind: self.strategy.mixture(*self.architecture.of(kind), training) for kind in KINDS}

    def set_epoch_values(self, values: EpochValues) -> None:
        """Tells the strategy and the cells what holds in this epoch."""
        self.strategy.tau, self.strategy.auxiliary_skip = values.tau, values.auxiliary_skip
        for cell in self.cells:
            assert isinstance(cell, SearchCell)
            cell.skip_dropout = values.skip_dropout

    def penalty(self, beta_weight: float = 0.0, own_weight: float = 0.0) -> Tensor | None:
        """What is added to the loss of the alphas: the penalty of β-DARTS and the strategy's own, over both cells."""
        terms = []
        for alphas in (self.architecture.normal, self.architecture.reduce):
            own = self.strategy.penalty(alphas) if own_weight else None
            terms += [] if own is None else [own_weight * own]
            terms += [beta_weight * beta_penalty(alphas)] if beta_weight else []
        return torch.stack(terms).sum() if terms else None

    def probabilities(self) -> dict[str, Tensor]:
        """(E, O) probabilities of each cell, ``{'normal': …, 'reduce': …}``, detached, on the CPU."""
        return {kind: self.strategy.probabilities(self.architecture.of(kind)[0].detach()).cpu() for kind in KINDS}

    def strengths(self, renormalised: bool = False) -> dict[str, Tensor]:
        """(E, O) strengths of each cell, differentiable: what :meth:`genotype` ranks edges and operations by.

        The probability, times the weight of the edge if the strategy has one (PC-DARTS, Xu et al., ICLR 2020, section
        3.3). The column of ``none`` says nothing.

        Args:
            renormalised: divide each edge by its mass outside ``none`` first. As published, an edge that ``none`` has
                absorbed is weak whatever its best operation is; renormalised, edges compete by how decided they are.
        """
        none, found = self.operations.index("none"), {}
        for kind in KINDS:
            alphas, edges = self.architecture.of(kind)
            rows, factors = self.strategy.probabilities(alphas), self.strategy.edge_weights(edges)
            if renormalised:
                mass = rows.sum(dim=1, keepdim=True) - rows[:, none : none + 1]
                rows = rows / mass.clamp_min(torch.finfo(rows.dtype).tiny)
            found[kind] = rows if factors is None else factors[:, None] * rows
        return found

    def genotype(self, renormalised: bool = False, name: str = "searched", skip_cap: int | None = None) -> Genotype:
        """The discrete cells that the present alphas stand for; see :func:`genotype.derive`."""
        with torch.no_grad():
            rows = {kind: strengths.tolist() for kind, strengths in self.strengths(renormalised).items()}
        return derive(**rows, operations=self.operations, name=name, skip_cap=skip_cap)


class _FrozenStatistics:
    """Keeps the running statistics of a cell whose forward pass is repeated from counting the batch twice.

    It can be entered again: a graph that is kept for another gradient repeats the pass each time.
    """

    def __init__(self, cell: nn.Module) -> None:
        self.norms: list[Any] = [module for module in cell.modules() if isinstance(module, _BatchNorm)]
        self.kept: list[tuple[float | None, Tensor]] = []

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def _check_shape(loss: str, channels: int, layers: Sequence[int], num_classes: int) -> None:
    check_choice("loss.name", loss, "loss")
    check_values("autoreid", channels=channels, layers=layers)
    if not is_whole(num_classes) or not 1 <= num_classes <= 1 << 24:
        raise UserError(f"a classifier needs at least one identity, and at most {1 << 24}, not {short(num_classes)}")


def _initialise_convolution(module: nn.Module) -> None:
    """He for 2-D convolutions, as torchreid's own models; linear layers stay as they are.

    By fan-in, where torchreid takes fan-out: PyTorch's fan-out ignores groups, and makes depth-wise weights too small.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


def _initialise_classifier(classifier: nn.Linear) -> None:
    """N(0, 0.01), as torchreid's own models."""
    nn.init.normal_(classifier.weight, 0.0, 0.01)
    nn.init.zeros_(classifier.bias)
