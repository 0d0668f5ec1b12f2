"""What the README's page "From Python" promises."""

import json

import numpy as np
import pytest
import torch
from forks import completed
from PIL import Image

import torchreid_autoreid
from torchreid_autoreid import Architect, AutoReIDSearchNetwork, Genotype, RetrievalLoss, UserError, report
from torchreid_autoreid.checkpoint import save_checkpoint
from torchreid_autoreid.commands import execute
from torchreid_autoreid.evaluation import (
    Embeddings,
    RetrievalIndex,
    cluster,
    compare_clusters,
    evaluate,
    evaluate_rank,
    load_embeddings,
    re_ranking,
    save_embeddings,
)
from torchreid_autoreid.gallery import Gallery
from torchreid_autoreid.genotype import derive
from torchreid_autoreid.search.truth import TruthSet
from torchreid_autoreid.spec import Description

#: no count, and no share or factor either
NO_NUMBERS = [-1, float("nan"), -float("inf"), True, "3", None, [3], 1j, 10**400, np.bool_(True), np.array([3])]
#: numbers where a whole one is wanted
NOT_WHOLE = [*NO_NUMBERS, 1.0, 2.5, float("inf"), np.float64(2.0)]


def test_every_public_name_is_there_and_no_other():
    for name in torchreid_autoreid.__all__:
        assert getattr(torchreid_autoreid, name) is not None
    assert set(torchreid_autoreid.__all__) == set(torchreid_autoreid._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        torchreid_autoreid.absent  # noqa: B018


@pytest.mark.parametrize(
    "order",
    [
        "import torchreid, torchreid_autoreid",
        "import torchreid_autoreid, torchreid",
        "import torchreid_autoreid.data, torchreid",
        "import torchreid_autoreid.plugin, torchreid",
        "from torchreid_autoreid import engine; import torchreid",
    ],
)
def test_in_whatever_order_they_are_imported_the_plugin_is_registered(order):
    check = (
        "import torchreid_autoreid\n"
        "assert torchreid.models.build_model('autoreid_x0_25', 3, pretrained=False).feature_dim == 512\n"
        "assert 'folder' in torchreid_autoreid.data.dataset_names()"
    )
    done = completed("-c", [f"{order}\n{check}"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", [1, 2])
def test_the_projects_own_loss_goes_into_its_architect(order):
    network = AutoReIDSearchNetwork(4, channels=4, layers=(1, 1, 1, 1), blocks=2)
    sgd = torch.optim.SGD(network.weights(), lr=0.05, momentum=0.9)
    batch = torch.randn(8, 3, 32, 32), torch.arange(4).repeat_interleave(2)
    value = Architect(network, RetrievalLoss(), sgd, order=order).backward(batch, batch)
    expected = Architect(network, lambda *given: RetrievalLoss()(*given)[0], sgd, order=order).backward(batch, batch)
    assert torch.equal(value, expected)
    assert all(alpha.grad is not None and alpha.grad.any() for alpha in network.alphas())


def test_a_genotype_prints_as_a_cell_and_draws_itself():
    text = repr(Genotype.load("retrieval"))
    assert text.splitlines()[:2] == ["retrieval: 4 blocks a cell", "  normal  2 = sep_conv_3x3(0) + skip_connect(1)"]
    assert len(text.splitlines()) == 9
    assert Genotype.load("retrieval")._repr_html_().count("<svg") == 2


def test_a_result_prints_as_a_table():
    sides = [Embeddings(np.eye(3, dtype=np.float32), [0, 1, 2], [camera] * 3) for camera in (0, 1)]
    lines = str(evaluate(*sides)).splitlines()
    assert lines[0].split() == ["mAP", "100.00%"]
    assert ["queries", "with", "a", "true", "match", "3", "of", "3"] in [line.split() for line in lines]


def write_checkpoint(path, neck="after", **configuration):
    own = {"genotype": Genotype.load("baseline"), "channels": 4, "layers": [1] * 4, "parts": 2, "last_stride": 1}
    own |= {"last_norm": False}
    description = Description("autoreid", "triplet", 48, 24, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], neck, **own)
    network = description.build(5)
    for _ in range(3):
        network(torch.randn(8, 3, 48, 24))
    network.eval()
    state = {"state_dict": network.state_dict(), "network": description.to_dict() | {"num_classes": 5}}
    save_checkpoint(state | {"configuration": configuration}, path)
    return network


@pytest.mark.parametrize("neck", ["none", "before", "after"])
def test_a_loaded_model_is_the_network_in_eval_mode(neck, tmp_path):
    network = write_checkpoint(tmp_path / "c.pth", neck)
    model = torchreid_autoreid.load_model(tmp_path / "c.pth")
    images = torch.randn(3, 3, 48, 24)
    with torch.no_grad():
        expected = network(images)
    assert torch.allclose(model(images), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not model.training
    assert model.feature_dim == expected.shape[1]
    wanted = Genotype.load("baseline")
    assert (model.genotype.normal, model.genotype.reduce) == (wanted.normal, wanted.reduce)
    with pytest.raises(UserError, match="for testing"):
        model.train()


@pytest.mark.parametrize(
    "configuration", [{}, {"recipe.flip_test": True}, {"recipe.flip_test": True, "test.normalize_feature": True}]
)
def test_it_gives_the_features_that_evaluate_measures(configuration, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("train", "query", "gallery"):
        for pid in (1, 2, 3):
            for camera in (1, 2):
                path = tmp_path / "data" / part / f"{pid:04d}_c{camera}s1_000001_00.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (60, 31, 3), np.uint8)).save(path)
    write_checkpoint(tmp_path / "c.pth", **configuration)
    command = ["--weights", tmp_path / "c.pth", "--root", tmp_path / "data", "-s", "folder", "-t", "folder"]
    execute("evaluate", [*map(str, command), "data.workers", "0", "--save-features", str(tmp_path / "f.npz")])
    query, _ = load_embeddings(tmp_path / "f.npz")
    model = torchreid_autoreid.load_model(tmp_path / "c.pth")
    paths = sorted((tmp_path / "data" / "query").iterdir())
    found = model(torch.stack([model.preprocess(path) for path in paths])).numpy()
    assert np.allclose(found, query.features, rtol=1e-4, atol=1e-5 * np.abs(query.features).max())
    assert torch.equal(model.preprocess(Image.open(paths[0])), model.preprocess(str(paths[0])))


def test_what_does_not_describe_itself_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not say which network"):
        torchreid_autoreid.load_model(tmp_path / "w.pth")


def write_log(folder, maps, seed=1, genotype="retrieval"):
    folder.mkdir()
    with open(folder / "history.jsonl", "w") as file:
        for epoch, mean_ap in enumerate(maps, start=1):
            retrieval = None if mean_ap is None else {"mAP": mean_ap, "rank1": mean_ap + 0.1}
            record = {"epoch": epoch, "seconds": 2.0, "train": {"loss": 1.0 / epoch, "top1": 0.5}, "lr": 0.1}
            file.write(json.dumps(record | {"retrieval": retrieval}) + "\n")
    (folder / "config.yaml").write_text(f"train: {{seed: {seed}, lr: 0.1}}\ndata: {{save_dir: {folder.name}}}\n")
    Genotype.load(genotype).save(folder / "genotype.json")
    return folder


def rows_of(history):
    return history if isinstance(history, list) else history.reset_index().to_dict("records")


def test_a_history_is_a_table(tmp_path):
    rows = rows_of(torchreid_autoreid.read_history(write_log(tmp_path / "log", [None, 0.25])))
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["retrieval.mAP"] == 0.25
    assert rows[0]["train.loss"] == 1.0
    with pytest.raises(UserError, match=r"holds no history.jsonl"):
        torchreid_autoreid.read_history(tmp_path)


def test_the_history_of_a_search_is_one_too(tmp_path):
    rows = {"normal": [[1 / 7] * 7] * 2, "reduce": [[1 / 7] * 7] * 2}
    record = {"epoch": 1, "w": {"loss": 2.0}, "alpha": None, "probabilities": rows, "none_mass": {"normal": 0.5}}
    (tmp_path / "history.jsonl").write_text(json.dumps(record) + "\n")
    (row,) = rows_of(torchreid_autoreid.read_history(tmp_path / "history.jsonl"))
    assert row == {"epoch": 1, "w.loss": 2.0, "none_mass.normal": 0.5}


def test_two_runs_beside_each_other(tmp_path):
    one = write_log(tmp_path / "one", [0.2, 0.4, 0.3])
    other = write_log(tmp_path / "other", [0.1, None, 0.5], seed=2, genotype="baseline")
    found = torchreid_autoreid.compare(one, other)
    assert found.figures["best mAP"] == (0.4, 0.5)
    assert found.figures["in epoch"] == (2, 3)
    assert found.settings == {"train.seed": (1, 2)}
    assert found.different_edges() > 0
    assert torchreid_autoreid.compare(one, one).different_edges() == 0
    lines = str(found).splitlines()
    assert any(line.split() == ["train.seed", "1", "2"] for line in lines)
    assert any(line.startswith("best mAP") for line in lines)


def test_the_selection_of_a_search_is_beside_another_run_too(tmp_path):
    one, other = write_log(tmp_path / "one", [0.2]), write_log(tmp_path / "other", [0.1])
    write_log(one / "selection", [0.3, 0.6])
    found = torchreid_autoreid.compare(one, other).figures
    assert found["best mAP"] == (0.2, 0.1)
    assert found["selection, best mAP"] == (0.6, None)
    assert found["selection, epochs"] == (2, None)


def small_network(**options):
    return torchreid_autoreid.AutoReIDNetwork(**{"num_classes": 3, "channels": 2, "layers": (1, 1, 1, 1), **options})


def small_search_network(**options):
    return AutoReIDSearchNetwork(**{"num_classes": 3, "channels": 4, "layers": (1, 1, 1, 1), **options})


def measured(**options):
    vectors, pids = np.eye(6, dtype=np.float32), np.arange(6) % 3
    query, gallery = Embeddings(vectors, pids, pids * 0), Embeddings(vectors, pids, pids * 0 + 1)
    return evaluate(query, gallery, **{"rerank": True, "k1": 2, "k2": 1, **options})


@pytest.mark.parametrize(
    ("call", "name", "wrong"),
    [
        *((small_network, name, NOT_WHOLE) for name in ("num_classes", "channels", "parts", "layers")),
        (small_network, "drop_path", NO_NUMBERS),
        *((small_search_network, name, NOT_WHOLE) for name in ("num_classes", "channels", "blocks", "parts")),
        *((RetrievalLoss, name, NO_NUMBERS) for name in ("loss_lambda", "margin", "label_smooth")),
        *((measured, name, NOT_WHOLE) for name in ("k1", "k2", "max_rank", "seed", "topk", "draws", "query_expansion")),
        *((measured, name, NO_NUMBERS) for name in ("lambda_value", "query_expansion_alpha")),
        *((measured, name, [*NOT_WHOLE[:5], 3]) for name in ("junk_pids", "distractor_pids", "leave_out")),
    ],
)
def test_a_number_that_is_none_is_refused_in_a_line(call, name, wrong):
    call()
    for value in wrong:
        if name == "leave_out" and value is None:
            continue  # its default
        with pytest.raises(UserError) as refused:
            call(**{name: value})
        assert len(str(refused.value).splitlines()) == 1


def test_numbers_of_numpy_are_numbers():
    small_network(channels=np.int64(2), drop_path=np.float32(0.5), layers=(np.int64(1),) * 4)
    result = measured(k1=np.int64(2), lambda_value=np.float32(0.5), topk=np.int64(10))
    assert result.topk_indices.shape == (6, 6)  # as many as there are


def test_many_nearest_items_are_all_that_there_are():
    assert measured(rerank=False, topk=10**9).topk_indices.shape == (6, 6)


#: none of them is the path of a file, a name, a genotype or a set of vectors
NO_PATHS = [None, 5, True, b"file", ["file"], 1.5, np.array(["file"]), "a\0b"]
NO_NAMES = [None, 5, ["darts"], {}, np.array(["darts"])]
NO_OBJECTS = [5, "", [], {}, (1,)]
RAGGED = [[1], [1, 2]]


def part_aware(**options):
    return torchreid_autoreid.PartAware(**{"in_channels": 4, "out_channels": 4, **options})


def derived(**options):
    rows = [[0.3, 0.7]] * 2
    return derive(**{"normal": rows, "reduce": rows, "operations": ["none", "skip_connect"], **options})


def architect(**options):
    network = small_search_network(blocks=1)
    sgd = torch.optim.SGD(network.weights(), lr=0.1)
    return Architect(**{"network": network, "loss": RetrievalLoss(), "weight_optimizer": sgd, **options})


def weighted_loss(**options):
    return RetrievalLoss.weighted(**{"softmax": 1.0, "triplet": 1.0, **options})


def measured_pairs(**options):
    sides = {
        name: Embeddings(np.eye(4), [0, 1, 2, 3], [camera] * 4) for camera, name in enumerate(["query", "gallery"])
    }
    return torchreid_autoreid.evaluation.roc(**{**sides, **options})


def gallery(tmp_path, **options):
    with Gallery.build(**{"folder": tmp_path / "g", "features": np.eye(2), "pids": [1, 2], **options}) as made:
        return made


ONE = Embeddings(np.eye(3), [0, 1, 2], [0, 0, 0])


@pytest.mark.parametrize(
    ("call", "name", "wrong"),
    [
        (lambda path: torchreid_autoreid.load_model(path), "path", NO_PATHS),
        (lambda path: Genotype.load(path), "path", NO_PATHS),
        (lambda path: Genotype.load("retrieval").save(path), "path", NO_PATHS),
        (lambda path: torchreid_autoreid.read_history(path), "path", NO_PATHS),
        (lambda path: torchreid_autoreid.compare(path, path), "path", NO_PATHS),
        (lambda path: load_embeddings(path), "path", NO_PATHS),
        (lambda path: save_embeddings(path, ONE, ONE), "path", NO_PATHS),
        (lambda path: RetrievalIndex.load(path), "path", NO_PATHS),
        (lambda path: RetrievalIndex.build(np.eye(3, dtype=np.float32), "Flat").save(path), "path", NO_PATHS),
        (lambda path: Gallery.open(path), "path", NO_PATHS),
        (lambda path: Gallery.create(path, 3), "path", NO_PATHS),
        (lambda path: Gallery.build(path, np.eye(3), [1, 2, 3]), "path", NO_PATHS),
        (lambda path: TruthSet.load(path), "path", NO_PATHS),
        (lambda path: TruthSet.load().save(path), "path", NO_PATHS),
        (lambda path: report.write_report(path), "path", NO_PATHS),
        (lambda path: cluster(np.eye(40), graph=path), "path", NO_PATHS[1:]),
        *((part_aware, name, [*NOT_WHOLE, 0]) for name in ("in_channels", "out_channels", "stride", "parts")),
        (small_network, "genotype", NO_OBJECTS),
        *((small_search_network, name, NO_NAMES) for name in ("space", "strategy")),
        (lambda name: torchreid_autoreid.register_model(name, channels=4), "name", NO_NAMES),
        (lambda genotype: Genotype.load("retrieval").changed_edges(genotype), "genotype", [None, *NO_OBJECTS]),
        (lambda genotype: report.draw_cell(genotype), "genotype", [None, *NO_OBJECTS]),
        (lambda kind: report.draw_cell(Genotype.load("retrieval"), kind), "kind", NO_NAMES),
        *((derived, name, [None, 5, "", [], [[None]] * 2, RAGGED]) for name in ("normal", "reduce", "operations")),
        (derived, "skip_cap", [-1, 1.5, float("nan"), True, "1", []]),
        *((architect, name, NO_NUMBERS) for name in ("order", "displacement")),
        *((weighted_loss, name, NO_NUMBERS) for name in ("softmax", "triplet")),
        *((measured_pairs, name, [None, *NO_OBJECTS]) for name in ("query", "gallery")),
        (measured_pairs, "fpr", [None, "x", [[0.1], [0.1, 0.2]], {}, [1j]]),
        (lambda side: evaluate(side, ONE), "side", [None, *NO_OBJECTS]),
        (lambda side: evaluate(ONE, side), "side", [None, *NO_OBJECTS]),
        (lambda pids: Embeddings(np.eye(2), pids), "pids", [None, RAGGED, {}]),
        (lambda pids: compare_clusters(pids, [1, 2]), "pids", [None, RAGGED, {}]),
        (lambda pids: compare_clusters([1, 2], pids), "pids", [None, RAGGED, {}]),
        (lambda d: evaluate_rank(d, [1, 2], [1, 2], [0, 0], [1, 1]), "d", [None, RAGGED, {}]),
        (lambda d: re_ranking(d, d, d), "d", [None, RAGGED, {}]),
        (lambda near: cluster(np.eye(40), neighbours=near), "near", NO_OBJECTS),
        (lambda layers: TruthSet.load().means(layers), "layers", [None, 5, {}]),
        (lambda figure: TruthSet.load().table((1, 1, 1, 1), figure), "figure", [*NO_NAMES[:2], "", "genotype"]),
        *(
            (draw, "records", [None, 5, [], [1], {}])
            for draw in (report.draw_history, report.draw_costs, report.verdict)
        ),
    ],
)
def test_what_is_of_another_kind_is_refused_in_a_line(call, name, wrong):
    for value in wrong:
        with pytest.raises(UserError) as refused:
            call(**{name: value})
        assert len(str(refused.value).splitlines()) == 1


def test_a_gallery_takes_no_odd_network_nor_people(tmp_path):
    for options in ({"network": []}, {"network": None}, {"pids": RAGGED}):
        with pytest.raises(UserError):
            gallery(tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == 0


def test_a_device_that_is_none_is_refused_in_a_line(tmp_path):
    write_checkpoint(tmp_path / "c.pth")
    for device in ("nothing", -1, [], 1.5, "cuda:99"):
        with pytest.raises(UserError, match="device"):
            torchreid_autoreid.load_model(tmp_path / "c.pth", device)
