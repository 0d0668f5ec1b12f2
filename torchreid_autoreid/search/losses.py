"""The retrieval loss (Auto-ReID, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..limits import Range, check_values

__all__ = ["ALPHA_LOSSES", "RetrievalLoss", "ScaleFreeLoss", "batch_hard_triplet"]


def batch_hard_triplet(features: Tensor, identities: Tensor, margin: float = 0.3) -> Tensor:
    """Batch-hard triplet loss (Hermans et al., 2017, equation 5), averaged over the batch.

    ``max(0, margin + max_p |f_i - f_p| - min_n |f_i - f_n|)``: the hardest positive is the farthest image of the same
    identity (the anchor itself counts, at distance 0), the hardest negative the nearest of another. The Auto-ReID paper
    prints the two norms the other way round, a known slip.

    torchreid's ``TripletLoss`` is the same for ordinary batches. It fails on a batch of a single identity (here: 0,
    there is no triplet), and its clamp at 1e-12 vanishes in half precision (here: distances are taken in float32 at
    least).

    Args:
        features: (B, D), floating.
        identities: (B,), integer.
        margin: in units of the feature distance.

    Returns:
        A scalar, float32 or wider.

    >>> batch_hard_triplet(torch.tensor([[0.0], [1.0], [3.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
    tensor(0.)
    """
    features = features if features.dtype == torch.float64 else features.float()
    squares = features.pow(2).sum(dim=1)
    squared = squares[:, None] + squares[None, :] - 2.0 * features @ features.t()
    # The clamp keeps the gradient of the root finite where two features coincide.
    distances = squared.clamp(min=1e-12).sqrt()  # (B, B)
    same = identities[:, None] == identities[None, :]
    farthest = distances.masked_fill(~same, 0.0).amax(dim=1)
    nearest = distances.masked_fill(same, float("inf")).amin(dim=1)
    # Without a negative the nearest is infinite, and the term is 0 by itself; no gradient flows through it.
    hinge = F.relu(margin + farthest - nearest)
    return hinge.mean()


class RetrievalLoss(nn.Module):
    """``L = lambda * L_s + (1 - lambda) * L_t`` (Auto-ReID, equation 5).

    ``L_s`` is the cross-entropy of the identity on the logits, ``L_t`` the batch-hard triplet loss on the **features**.

    Args:
        loss_lambda: the share of the cross-entropy, in [0, 1]; 0.5 by default (not published).
        margin: of the triplet loss, 0.3 by default (not published; the field's usual value).
        label_smooth: weight of the uniform distribution in the target, 0.1 in torchreid; 0 switches it off.

    Raises:
        UserError: if an argument is out of range.

    >>> loss = RetrievalLoss()
    >>> total, parts = loss((torch.zeros(4, 3), torch.zeros(4, 8)), torch.tensor([0, 0, 1, 1]))
    >>> sorted(parts)
    ['loss', 'loss_softmax', 'loss_triplet']
    """

    def __init__(self, loss_lambda: float = 0.5, margin: float = 0.3, label_smooth: float = 0.0) -> None:
        super().__init__()
        check_values("search", loss_lambda=loss_lambda)
        check_values("loss.triplet", margin=margin)
        if label_smooth not in Range(0, 1, below=True):
            raise UserError(f"label_smooth must be at least 0 and below 1, not {label_smooth!r}")
        self.loss_lambda = loss_lambda
        #: of the parts in the total
        self.weights = {"loss_softmax": loss_lambda, "loss_triplet": 1.0 - loss_lambda}
        self.margin = margin
        self.label_smooth = label_smooth

    @classmethod
    def weighted(cls, softmax: float, triplet: float, margin: float = 0.3, label_smooth: float = 0.0) -> RetrievalLoss:
        """``softmax * L_s + triplet * L_t``, with weights that need not add to 1, as in torchreid's triplet engine.

        Raises:
            UserError: if a weight is negative or both are 0.
        """
        numbers = all(weight in Range(0, 1e30) for weight in (softmax, triplet))
        if not numbers or not softmax + triplet > 0:
            raise UserError(f"the weights of the loss must not be negative nor both 0, not {softmax!r} and {triplet!r}")
        loss = cls(softmax / (softmax + triplet), margin, label_smooth)
        loss.weights = {"loss_softmax": softmax, "loss_triplet": triplet}
        return loss

    def forward(self, outputs: tuple[Tensor, Tensor], identities: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``(logits (B, K), features (B, D))`` and ``(B,)`` identities to the total and its detached parts."""
        found = self.parts(outputs, identities)
        # A part of weight 0 stays out of the graph: 0 times an infinite loss would be NaN.
        terms = [weight * found[name] for name, weight in self.weights.items() if weight]
        total = torch.stack(terms).sum()
        return total, {"loss": total.detach()} | {name: part.detach() for name, part in found.items()}

    def parts(self, outputs: tuple[Tensor, Tensor], identities: Tensor) -> dict[str, Tensor]:
        """The cross-entropy and the triplet loss, differentiable and without their weights."""
        logits, features = outputs
        return {
            "loss_softmax": F.cross_entropy(logits, identities, label_smoothing=self.label_smooth),
            "loss_triplet": batch_hard_triplet(features, identities, self.margin),
        }


class ScaleFreeLoss(RetrievalLoss):
    """:class:`RetrievalLoss` that does not change when the features are multiplied by a number.

    On raw features an operation that changes their scale moves the triplet loss, whether or not it tells people apart,
    and the alphas follow it: at the first steps of a search the triplet gradient and the gradient of the spread of the
    features have a cosine of 0.85. Here the triplet loss sees features of length 1, so that the margin is one of
    distances up to 2, and the cross-entropy sees logits that are centred over the batch and divided by their standard
    deviation, which takes away the scale of the features, that of the classifier, and its bias.

    Args:
        loss_lambda, margin, label_smooth: as in :class:`RetrievalLoss`.

    >>> features = torch.tensor([[1.0, 2.0], [2.0, 1.0], [-1.0, 0.5], [0.0, -2.0]])
    >>> identities = torch.tensor([0, 0, 1, 1])
    >>> loss = ScaleFreeLoss()
    >>> one, other = (loss((c * features, c * features), identities)[0] for c in (1.0, 100.0))
    >>> bool(torch.isclose(one, other))
    True
    """

    def parts(self, outputs: tuple[Tensor, Tensor], identities: Tensor) -> dict[str, Tensor]:
        """As :meth:`RetrievalLoss.parts`."""
        logits, features = (x if x.dtype == torch.float64 else x.float() for x in outputs)
        centred = logits - logits.mean(dim=0)
        variance = centred.pow(2).mean()  # 0 where a network answers the same for all images; its root has no gradient
        standardised = centred / torch.where(variance > 0, variance, 1.0).sqrt()
        return super().parts((standardised, F.normalize(features, dim=1)), identities)


#: what the alphas minimise, as in the key ``search.alpha_loss``: without regard to scale, or as the paper prints it
ALPHA_LOSSES: dict[str, type[RetrievalLoss]] = {"scale_free": ScaleFreeLoss, "published": RetrievalLoss}
