"""The other operations: shapes, gradients, and what each is defined to compute."""

import pytest
import torch
from torch.nn import functional as F

from torchreid_autoreid.genotype import OPERATION_NAMES
from torchreid_autoreid.space.cells import DropPath
from torchreid_autoreid.space.operations import OPERATIONS, build_operation


def test_the_table_is_the_search_space():
    assert tuple(OPERATIONS) == OPERATION_NAMES


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 4), (9, 5), (2, 1), (1, 1)])
@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_shape_and_finite_gradient(name, size, stride, affine):
    torch.manual_seed(0)
    op = build_operation(name, 6, stride, affine=affine)
    x = torch.randn(2, 6, *size, requires_grad=True)
    out = op(x)
    assert out.shape == (2, 6, -(-size[0] // stride), -(-size[1] // stride))
    out.pow(3).sum().backward()
    assert x.grad.isfinite().all()
    for parameter in op.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_search_form_has_no_affine_norm_and_derived_form_has(name):
    norms = lambda op: [m for m in op.modules() if isinstance(m, torch.nn.BatchNorm2d)]  # noqa: E731
    assert all(not m.affine for m in norms(build_operation(name, 4, 2, affine=False)))
    assert all(m.affine for m in norms(build_operation(name, 4, 2, affine=True)))


def norm(x):
    return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_definitions(stride):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 9, 6, dtype=torch.float64)

    def run(name):
        op = build_operation(name, 4, stride, affine=False).double()
        return op(x), [p.detach() for p in op.parameters()]

    out, _ = run("max_pool_3x3")
    padded = F.pad(x, (1, 1, 1, 1), value=-float("inf"))
    windows = padded.unfold(2, 3, stride).unfold(3, 3, stride)
    assert torch.allclose(out, norm(windows.amax(dim=(4, 5))))

    out, _ = run("avg_pool_3x3")  # the padding does not count
    sums = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, stride).unfold(3, 3, stride).sum(dim=(4, 5))
    counts = F.pad(torch.ones_like(x), (1, 1, 1, 1)).unfold(2, 3, stride).unfold(3, 3, stride).sum(dim=(4, 5))
    assert torch.allclose(out, norm(sums / counts))

    out, (depth, point) = run("dil_conv_3x3")
    windows = F.pad(x.relu(), (2, 2, 2, 2)).unfold(2, 5, stride).unfold(3, 5, stride)[..., ::2, ::2]
    filtered = torch.einsum("bchwij,cij->bchw", windows, depth[:, 0])
    assert torch.allclose(out, norm(torch.einsum("bchw,dc->bdhw", filtered, point[:, :, 0, 0])))

    out, (depth1, point1, depth2, point2) = run("sep_conv_3x3")
    y = x
    for depth, point, step in ((depth1, point1, stride), (depth2, point2, 1)):
        windows = F.pad(y.relu(), (1, 1, 1, 1)).unfold(2, 3, step).unfold(3, 3, step)
        filtered = torch.einsum("bchwij,cij->bchw", windows, depth[:, 0])
        y = norm(torch.einsum("bchw,dc->bdhw", filtered, point[:, :, 0, 0]))
    assert torch.allclose(out, y)

    out, _ = run("none")
    assert not out.any()

    out, weights = run("skip_connect")
    if stride == 1:
        assert out is x
    else:  # half of the channels from the even pixels, half from the odd ones
        even = F.conv2d(x.relu(), weights[0])[:, :, ::2, ::2]
        odd = F.conv2d(F.pad(x.relu(), (0, 1, 0, 1)), weights[1])[:, :, 1::2, 1::2]
        assert torch.allclose(out, norm(torch.cat([even[:, :, :5, :3], odd[:, :, :5, :3]], dim=1)))


def test_drop_path_keeps_the_expectation_and_whole_samples():
    torch.manual_seed(0)
    drop = DropPath(0.3)
    x = torch.ones(20_000, 2, 1, 1)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop.eval()(x) is x
