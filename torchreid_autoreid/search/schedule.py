"""What changes from epoch to epoch of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..limits import check_values
from ..space.strategies import EpochValues

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """What changes by epoch, each linearly from the first epoch to the last; 0 switches an option off.

    Args:
        tau_start, tau_end: temperature of GDAS at the first and the last epoch, 10 and 0.1 in the paper (section 4.1).
        auxiliary_skip: DARTS−'s weight of the auxiliary skip connection at the first epoch, 1 in the paper; 0 at the
            last one, so that the network searched ends as the network derived.
        beta_weight: β-DARTS's weight of :func:`~torchreid_autoreid.space.strategies.beta_penalty` at the last epoch, 50
            in the paper on NAS-Bench-201; 0 at the first one.
        skip_dropout: P-DARTS's dropout after the skip connections at the first epoch (Chen et al., ICCV 2019, section
            3.3, which decays it "gradually" and gives no formula); 0 at the last one.
        dirichlet_weight: of the regulariser of DrNAS, the same in all epochs.

    Raises:
        UserError: if an argument is out of range.

    >>> Schedule().at(0, 11).tau, Schedule().at(10, 11).tau
    (10.0, 0.1)
    """

    tau_start: float = 10.0
    tau_end: float = 0.1
    auxiliary_skip: float = 0.0
    beta_weight: float = 0.0
    skip_dropout: float = 0.0
    dirichlet_weight: float = 1e-3

    def __post_init__(self) -> None:
        check_values("search", **asdict(self))

    def at(self, epoch: int, epochs: int) -> EpochValues:
        """The values in an epoch, 0-based, of so many; a function of nothing else, so that a resumed run has the same.

        A search of a single epoch has the values of the first.
        """
        share = epoch / (epochs - 1) if epochs > 1 else 0.0
        return EpochValues(
            tau=(1.0 - share) * self.tau_start + share * self.tau_end,
            auxiliary_skip=(1.0 - share) * self.auxiliary_skip,
            beta_weight=share * self.beta_weight,
            skip_dropout=(1.0 - share) * self.skip_dropout,
        )
