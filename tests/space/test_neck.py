"""The batch-norm neck: what the losses see, what testing sees, on our network and on torchreid's."""

import pytest
import torch
import torchreid
from torch import nn

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.space.neck import BNNeck, add_neck
from torchreid_autoreid.space.networks import AutoReIDNetwork


def build(name="own"):
    torch.manual_seed(0)
    if name == "own":
        return AutoReIDNetwork(5, "triplet", channels=2, layers=(1, 1, 1, 1))
    return torchreid.models.build_model(name, 5, loss="triplet", pretrained=False)


def test_it_is_a_batch_norm_without_shift_and_a_linear_layer_without_bias():
    neck = BNNeck(6, 4).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    normal = (x - x.mean(0)) / (x.var(0, unbiased=False) + neck.norm.eps).sqrt() * neck.norm.weight
    assert torch.allclose(neck(x), normal @ neck.linear.weight.T)
    assert {name for name, _ in neck.named_parameters()} == {"norm.weight", "linear.weight"}


@pytest.mark.parametrize("name", ["own", "osnet_x0_25", "resnet18", "mobilenetv2_x1_0"])
@pytest.mark.parametrize("feature", ["before", "after"])
def test_testing_takes_the_feature_before_or_after_it(name, feature):
    model = add_neck(build(name), feature)
    x = torch.randn(4, 3, 64, 32)
    logits, _ = model(x)
    assert logits.shape == (4, 5)
    model.eval()
    with torch.no_grad():
        tested = model(x)
        bare = build(name)
        bare.load_state_dict({k: v for k, v in model.state_dict().items() if "classifier" not in k}, strict=False)
        plain = bare.eval()(x)
        expected = model.classifier.norm(plain) if feature == "after" else plain
    assert torch.allclose(tested, expected, atol=1e-6)
    if name == "own":
        assert model(x, return_featuremaps=True).dim() == 4


def test_none_adds_nothing():
    model = build()
    classifier = model.classifier
    assert add_neck(model, "none").classifier is classifier


def test_mistakes_are_told():
    with pytest.raises(UserError, match="'behind'; choose none, before, after"):
        add_neck(build(), "behind")
    headless = build()
    headless.classifier = nn.ModuleList([nn.Linear(3, 2)])
    with pytest.raises(UserError, match="no single linear classifier"):
        add_neck(headless, "after")
