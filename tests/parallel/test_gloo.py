"""Two processes, each with half of every batch, do what one does with the whole: in float64, up to rounding."""

import multiprocessing

import pytest
import ranks
import torch
from drawn_images import draw_people

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.parallel.group import Group, group


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("images"), identities=7)


def answers_of_both(task, root, folder):
    # A fork server imports everything once; forking from pytest itself would copy the threads' locks.
    multiprocessing.set_forkserver_preload(["ranks"])
    arguments = ranks.PROCESSES, str(root), str(folder), task
    torch.multiprocessing.start_processes(ranks.work, arguments, nprocs=ranks.PROCESSES, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks.PROCESSES)]


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    return answers_of_both("runs", root, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def pieces(root, tmp_path_factory):
    return answers_of_both("pieces", root, tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def mishaps(root, tmp_path_factory):
    return answers_of_both("mishaps", root, tmp_path_factory.mktemp("mishaps"))


def assert_close(one, other, rtol=1e-7, atol=1e-10):
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key], rtol, atol)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_close(left, right, rtol, atol)
    else:
        assert one == pytest.approx(other, rel=rtol, abs=atol) if isinstance(one, float) else one == other


def assert_identical(one, other):
    assert_close(one, other, 0.0, 0.0)


# -- steps ------------------------------------------------------------------------------------------------------------

#: of the first gradient of the alphas; the second order divides a difference by a small number
ALPHA_TOLERANCE = {"second order": 1e-9}


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    answers = {}

    def run(name):
        if name not in answers:
            call, options = ranks.RUNS[name]
            answers[name] = call(root, tmp_path_factory.mktemp("alone"), 0, 1, **options)
        return answers[name]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.RUNS)
def test_two_processes_with_half_the_batch_equal_one_with_the_whole(name, runs, alone):
    expected = alone(name)
    assert len(expected["figures"]) >= 3
    for answer in runs:
        mine = answer[name]
        # Rounding grows from step to step, about tenfold.
        assert_close(mine["figures"][:2], expected["figures"][:2], 1e-12, 1e-13)
        if "gradients" in mine:
            first, wanted = (answer["gradients"]["alphas"][0] for answer in (mine, expected))
            assert_close(first, wanted, ALPHA_TOLERANCE.get(name, 1e-11), 1e-13)
        for key in mine.keys() - {"written"}:
            assert_close(mine[key], expected[key], 1e-5, 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ranks.RUNS, *ranks.OTHER_RUNS])
def test_both_processes_hold_the_same_bit_for_bit(name, runs):
    one, other = ({key: value for key, value in answer[name].items() if key != "written"} for answer in runs)
    assert_identical(one, other)


@pytest.mark.slow
def test_the_second_order_is_another_gradient(runs):
    first, second = (runs[0][name]["gradients"]["alphas"][0][0] for name in ("first order", "second order"))
    assert (first - second).norm() / first.norm() > 1e-4


@pytest.mark.slow
def test_only_the_first_process_writes(runs, alone):
    for name in ("first order", "second order"):
        mine, expected = ({file for file in answer[name]["written"] if "tfevents" not in file}
                          for answer in (runs[0], {name: alone(name)}))  # fmt: skip
        assert mine == expected >= {"genotype.json", "checkpoint.pth", "history.jsonl"}
        assert sum("tfevents" in file for file in runs[0][name]["written"]) == 1


@pytest.mark.slow
def test_a_sum_is_the_mean_times_the_processes(runs):
    mean, total = (runs[0][name]["gradients"]["alphas"][0] for name in ("first order", "sum"))
    assert_close(total, [2 * gradient for gradient in mean])


@pytest.mark.slow
def test_statistics_of_each_process_make_another_run(runs):
    one, other = (runs[0][name]["gradients"]["alphas"][0][0] for name in ("first order", "own statistics"))
    assert (one - other).norm() / one.norm() > 1e-3


# -- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ranks.norms())
def test_batch_norm_is_that_of_the_whole_batch(name, pieces):
    expected = ranks.normalised(0, 1)[name]
    parts = [answer["norms"][name] for answer in pieces]
    for index, value in enumerate(expected["values"]):
        assert_close(torch.cat([part["values"][index] for part in parts]), value)
    for index, value in enumerate(expected["parameters"]):
        assert_close(sum(part["parameters"][index] for part in parts), value)
    for part in parts:
        assert_close(part["state"], expected["state"])
        assert_close(part["eval"], expected["eval"])


def test_rows_are_joined_with_their_gradient(pieces):
    answers = [answer["pieces"] for answer in pieces]
    whole = torch.cat([torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + 10 * rank for rank in range(2)])
    for answer in answers:
        assert torch.equal(answer["joined"], whole)
        assert answer["identities"].tolist() == [0, 0, 7, 1, 1, 7]
    # Twice the gradient 2 x of the loss, so that the mean over pieces is that of one process.
    assert torch.equal(torch.cat([answer["back"] for answer in answers]), 2 * 2 * whole)


def test_tensors_of_several_kinds_are_reduced(pieces):
    for answer in (answer["pieces"] for answer in pieces):
        for name, factor in (("mean", 0.5), ("sum", 1.0)):
            square, double, scalar = answer[name]
            assert torch.equal(square, torch.full((2, 2), 1.0) * factor)
            assert torch.equal(double, torch.tensor([3.0], dtype=torch.float64) * factor)
            assert torch.equal(scalar, torch.tensor(3.0) * factor)
        assert answer["any"] == [True, False, True]


def test_what_the_first_process_makes_is_that_of_all(pieces):
    for rank, answer in enumerate(answer["pieces"] for answer in pieces):
        assert torch.equal(answer["from first"]["x"], torch.arange(3))
        assert answer["from first"]["made by"] == 0
        kind, text = answer["first fails"]
        assert kind == ("SharedError" if rank else "ZeroDivisionError")
        assert "division by zero" in text
    assert group(False).from_first(lambda: 5) == 5


def test_random_rows_are_shares_of_the_same(pieces):
    torch.manual_seed(4)
    rows, after = torch.rand(6, 2), torch.rand(1)
    assert torch.equal(torch.cat([answer["pieces"]["drawn"] for answer in pieces]), rows)
    assert all(torch.equal(answer["pieces"]["next"], after) for answer in pieces)


def test_an_error_of_one_process_is_that_of_all(pieces):
    for rank, answer in enumerate(pieces):
        alphas, genotype, fault, mistake = answer["pieces"]["errors"]
        assert alphas[0] == genotype[0] == "SharedError"
        assert "the alphas of process 1 and of process 0 differ after epoch 3" in alphas[1]
        assert "the genotype of process 1" in genotype[1]
        expected = ("ValueError", "a fault") if rank == 1 else ("SharedError", "process 1: ValueError('a fault')")
        assert fault == expected
        assert mistake == ("SharedError", "a mistake, é")


def test_nothing_holds_the_processes_together_in_the_end(pieces):
    assert [answer["freed"] for answer in pieces] == [True, True]


def test_alone_everything_is_as_it_was():
    everyone = group(False)
    values = [torch.ones(2)]
    assert everyone.joined(values) is values
    assert everyone.reduced(values)[0] is values[0]
    assert [everyone.any(flag) for flag in (True, False)] == [True, False]
    everyone.check_same("now", alphas=values)
    everyone.agree()
    with pytest.raises(KeyError), everyone.together():
        raise KeyError
    with pytest.raises(KeyError):
        everyone.agree(KeyError())


def test_what_cannot_be_is_told():
    with pytest.raises(UserError, match="start with torchrun"):
        group(True)
    with pytest.raises(UserError, match="by their mean or sum, not 'max'"):
        Group("max")


# -- mishaps ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_both(mishaps):
    for answer in mishaps:
        assert answer["torn"] == ("SharedError", "cannot read the image x.jpg")


@pytest.mark.slow
def test_alphas_that_drift_apart_are_noticed_before_anything_is_written(mishaps):
    for answer in mishaps:
        kind, text = answer["drift"]
        assert kind == "SharedError"
        assert "the alphas of process 1 and of process 0 differ after epoch 1" in text
        assert "checkpoint.pth" not in answer["drift wrote"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(mishaps):
    for answer in mishaps:
        assert "--resume" in answer["stopped"]
        assert answer["batch"] == 2


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(mishaps):
    for answer in mishaps:
        assert_identical(answer["resumed"], answer["through"])


@pytest.mark.slow
def test_another_number_of_processes_goes_on_up_to_rounding(root, tmp_path_factory):
    first, second = answers_of_both("going on", root, tmp_path_factory.mktemp("going on"))
    assert first.keys() - second.keys() == {"one, then one", "two, then one"}
    expected = first["one, then one"]
    for name in ("two, then one", "one, then two", "two, then two"):
        found = first[name]
        assert len(found["figures"]) == len(expected["figures"]) >= 4
        assert found["figures"] != expected["figures"]  # rounding there is
        for key in ("figures", "gradients"):  # of the steps after the resume
            assert_close(found[key][:2], expected[key][:2], 1e-10, 1e-11)
            assert_close(found[key], expected[key], 1e-6, 1e-8)
        assert_close(found["state"], expected["state"], 1e-6, 1e-8)
    for name in ("one, then two", "two, then two"):
        assert_identical(first[name], second[name])


@pytest.mark.slow
def test_a_gradient_that_overflows_in_one_process_holds_both(mishaps):
    for answer in mishaps:
        assert answer["stood still"][:2] == [True, False]
        assert answer["scale"] == 512.0


@pytest.mark.slow
def test_a_disk_that_is_full_ends_both(mishaps):
    assert mishaps[0]["disk full"] == ("OSError", "no space left")
    assert mishaps[1]["disk full"] == ("SharedError", "process 0: OSError('no space left')")


@pytest.mark.slow
def test_no_batch_norm_is_left_out(mishaps):
    assert mishaps[0]["unsynchronised"] == 0
