"""The retrieval loss against loops over the batch, and against torchreid's own triplet loss."""

import pytest
import torch
import torchreid
from torch.nn import functional as F

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.search.losses import RetrievalLoss, ScaleFreeLoss, batch_hard_triplet


def spelt_out_triplet(features, identities, margin):
    total = 0.0
    for i in range(len(features)):
        distances = [(features[i] - f).norm() for f in features]
        positive = max(d for d, y in zip(distances, identities, strict=True) if y == identities[i])
        negatives = [d for d, y in zip(distances, identities, strict=True) if y != identities[i]]
        if negatives:
            total = total + torch.clamp(margin + positive - min(negatives), min=0.0)
    return total / len(features)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    identities = torch.tensor([0, 0, 0, 3, 3, 1, 1, 1, 2, 2])
    return torch.randn(10, 6, dtype=torch.float64, requires_grad=True), identities


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_triplet_equals_the_spelt_out_form_with_its_gradient(batch, margin):
    features, identities = batch
    ours = batch_hard_triplet(features, identities, margin)
    theirs = spelt_out_triplet(features, identities, margin)
    assert torch.allclose(ours, theirs, atol=1e-10)
    grads = [torch.autograd.grad(value, features, retain_graph=True)[0] for value in (ours, theirs)]
    assert torch.allclose(*grads, atol=1e-6)


def test_triplet_equals_torchreid(batch):
    features, identities = batch
    theirs = torchreid.losses.TripletLoss(margin=0.3)(features.float(), identities)
    assert torch.allclose(batch_hard_triplet(features.float(), identities, 0.3), theirs, atol=1e-6)


@pytest.mark.parametrize("label_smooth", [0.0, 0.1])
def test_cross_entropy_equals_torchreid(label_smooth):
    torch.manual_seed(0)
    logits, identities = torch.randn(8, 5), torch.randint(5, (8,))
    criterion = torchreid.losses.CrossEntropyLoss(5, use_gpu=False, label_smooth=label_smooth > 0)
    total, parts = RetrievalLoss(1.0, label_smooth=label_smooth)((logits, torch.zeros(8, 3)), identities)
    assert torch.allclose(total, criterion(logits, identities), atol=1e-6)
    assert torch.allclose(parts["loss_softmax"], total)


def test_total_is_the_weighted_sum(batch):
    features, identities = batch
    logits = torch.randn(10, 4, dtype=torch.float64)
    total, parts = RetrievalLoss(0.3, margin=1.0)((logits, features), identities)
    expected = 0.3 * F.cross_entropy(logits, identities) + 0.7 * spelt_out_triplet(features, identities, 1.0)
    assert torch.allclose(total, expected)
    assert torch.allclose(parts["loss"], expected)
    assert torch.allclose(parts["loss_triplet"], spelt_out_triplet(features, identities, 1.0))


def test_triplet_sees_the_features_never_the_logits(batch):
    features, identities = batch
    logits = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    total, _ = RetrievalLoss(0.0, margin=1.0)((logits, features), identities)
    by_logits, by_features = torch.autograd.grad(total, [logits, features], allow_unused=True)
    assert by_logits is None
    assert by_features.abs().sum() > 0


def test_one_identity_has_no_triplet():
    features = torch.randn(4, 3, requires_grad=True)
    value = batch_hard_triplet(features, torch.zeros(4, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0
    assert not features.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_features_give_the_margin_and_a_finite_gradient(dtype):
    features = torch.ones(4, 3, dtype=dtype, requires_grad=True)
    value = batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), 0.3)
    value.backward()
    assert value.item() == pytest.approx(0.3, abs=1e-3)
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    "keywords", [{"loss_lambda": 1.5}, {"loss_lambda": float("nan")}, {"margin": -0.1}, {"label_smooth": 1.0}]
)
def test_arguments_out_of_range_are_named(keywords):
    name, value = next(iter(keywords.items()))
    with pytest.raises(UserError, match=f"{name}.*{value}"):
        RetrievalLoss(**keywords)


def alpha_gradient(loss, factor):
    """Of a mixture of two operations: a small one that knows identities, and a large one that does not."""
    generator = torch.Generator().manual_seed(0)
    identities = torch.arange(4).repeat_interleave(3)
    small, large = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    small = small + 2.0 * torch.randn(4, 5, generator=generator, dtype=torch.float64)[identities]
    classifier = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    bias = torch.randn(7, generator=generator, dtype=torch.float64)
    alphas = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    features = factor * (alphas.softmax(0)[0] * small + alphas.softmax(0)[1] * 5.0 * large)
    loss((features @ classifier.t() + bias, features), identities)[0].backward()
    return alphas.grad


@pytest.mark.parametrize("factor", [1e-3, 0.1, 10.0, 1e4])
@pytest.mark.parametrize("loss_lambda", [0.0, 0.3, 1.0])
def test_the_scale_of_the_features_does_not_turn_the_gradient(factor, loss_lambda):
    loss = ScaleFreeLoss(loss_lambda)
    one, other = alpha_gradient(loss, 1.0), alpha_gradient(loss, factor)
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 1 - 1e-9
    assert torch.allclose(one, other, rtol=1e-6)


def test_it_prefers_what_tells_people_apart_to_what_is_large():
    """The gradient raises the alpha of the operation that knows identities; that of raw features need not."""
    gradient = alpha_gradient(ScaleFreeLoss(), 1.0)
    assert gradient[0] < 0 < gradient[1]


def test_it_is_the_retrieval_loss_of_standardised_outputs():
    torch.manual_seed(0)
    logits, features, identities = torch.randn(6, 4), torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    total, parts = ScaleFreeLoss(0.3, 0.2, 0.1)((logits, features), identities)
    unit = torch.stack([row / row.pow(2).sum().sqrt() for row in features])
    centred = torch.stack([column - column.sum() / 6 for column in logits.t()], dim=1)
    expected, others = RetrievalLoss(0.3, 0.2, 0.1)((centred / centred.std(correction=0), unit), identities)
    assert torch.allclose(total, expected)
    assert parts.keys() == others.keys()
    assert all(torch.allclose(parts[name], others[name]) for name in parts)


def test_a_network_that_answers_the_same_for_all_images_has_a_finite_gradient():
    features = torch.full((4, 3), 0.5, requires_grad=True)
    logits = torch.full((4, 5), 0.25, requires_grad=True)
    total, _ = ScaleFreeLoss()((logits, features), torch.tensor([0, 0, 1, 1]))
    total.backward()
    assert total.isfinite()
    for answers in (logits, features):
        assert answers.grad.isfinite().all()
