"""The batch-norm neck ("Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPRW 2019)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import UserError

__all__ = ["FEATURES", "BNNeck", "add_neck", "tested_norm"]

#: where the feature of testing is taken: without a neck, before it, after it
FEATURES = ("none", "before", "after")


class BNNeck(nn.Module):
    """Batch norm without a shift, then a linear classifier without a bias; it stands in for a network's classifier.

    So the triplet loss sees the feature before the batch norm, and the cross-entropy what comes after it.

    Shapes: ``(B, D)`` features to ``(B, num_classes)`` logits.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(feature_dim)
        # Not merely frozen: torchreid's engines switch requires_grad on again in every epoch.
        self.norm.register_parameter("bias", None)
        self.linear = nn.Linear(feature_dim, num_classes, bias=False)
        nn.init.normal_(self.linear.weight, std=0.001)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


class _AfterNeck:
    """Forward hook: the feature of testing passes the neck's batch norm."""

    def __call__(self, model: Any, _: Any, output: Any) -> Any:
        features = not model.training and isinstance(output, Tensor) and output.dim() == 2
        return model.classifier.norm(output) if features else output


def tested_norm(model: nn.Module) -> nn.Module | None:
    """The batch norm that the feature of testing passes, if the model has a neck and the feature is taken after it."""
    after = any(isinstance(hook, _AfterNeck) for hook in model._forward_hooks.values())
    return model.get_submodule("classifier.norm") if after else None


def add_neck(model: nn.Module, feature: str) -> nn.Module:
    """Gives a torchreid model a neck, in place.

    Args:
        model: with a linear ``classifier`` on its feature, as all of torchreid's but ``pcb`` and ``hacnn`` have.
        feature: ``before`` or ``after``: where the feature of testing is taken; ``none`` adds nothing.

    Raises:
        UserError: if the model has no such classifier, or ``feature`` is unknown.

    >>> import torch
    >>> from torchreid_autoreid.space.networks import AutoReIDNetwork
    >>> network = add_neck(AutoReIDNetwork(5, "triplet", channels=4, layers=(1, 1, 1, 1)), "after")
    >>> [tuple(output.shape) for output in network(torch.zeros(2, 3, 64, 32))]
    [(2, 5), (2, 128)]
    """
    if feature not in FEATURES:
        raise UserError(f"unknown neck {feature!r}; choose {', '.join(FEATURES)}")
    if feature == "none":
        return model
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"{type(model).__name__} has no single linear classifier to put a neck before; set recipe.neck none"
        )
    model.classifier = BNNeck(classifier.in_features, classifier.out_features)
    if feature == "after":
        model.register_forward_hook(_AfterNeck())
    return model
