"""What networks cost, by the counting of torchreid and by the table of the search, and that no folder can break it."""

import pytest
import torchreid

from torchreid_autoreid.commands.costs import count_costs, count_costs_of_log, count_network
from torchreid_autoreid.config.read import load_config
from torchreid_autoreid.genotype import Genotype, cell_edges, operation_names
from torchreid_autoreid.records import SearchRecord
from torchreid_autoreid.report.costs import edge_costs


@pytest.fixture(scope="module")
def cfg():
    opts = ["search.budget.channels", "4", "search.budget.layers", "[1, 1, 1, 1]"]
    return load_config("autoreid_search.yaml", opts)


@pytest.fixture(scope="module")
def counted(cfg):
    return count_costs(cfg, Genotype.load("baseline"))


def test_known_networks_cost_what_torchreid_counts(counted):
    assert counted.size == (64, 32)
    for name, model in (("ResNet-50", "resnet50"), ("OSNet (x1.0)", "osnet_x1_0")):
        network = torchreid.models.build_model(model, 1, "softmax", pretrained=False)
        _, macs = torchreid.utils.compute_model_complexity(network, (1, 3, 64, 32))
        (found,) = [one for one in counted.networks if one.name == name]
        own = sum(p.numel() for key, p in network.named_parameters() if not key.startswith("classifier"))
        assert found.params == own
        # torchreid also counts some operations that multiply nothing, and rounds others.
        assert found.macs == pytest.approx(macs, rel=0.02)


def test_the_network_found_costs_the_sum_of_its_edges_and_of_what_all_have(cfg, counted):
    genotype = Genotype.load("baseline")
    assert counted.own == count_network(cfg, genotype)
    other = count_network(cfg, Genotype.load("retrieval"))

    def of_edges(measure, of):
        total = 0.0
        for kind in ("normal", "reduce"):
            rows = {(block, source): edge for edge, block, source in cell_edges(4)}
            for block, pair in enumerate(getattr(of, kind)):
                for operation, source in pair:
                    column = operation_names(cfg.search.space).index(operation)
                    total += counted.edges[measure][kind][rows[block, source]][column]
        return total

    for measure in ("params", "macs"):
        found = getattr(counted.own, measure) - getattr(other, measure)
        assert found == of_edges(measure, genotype) - of_edges(measure, Genotype.load("retrieval"))
    names = [one.name for one in counted.networks]
    assert "baseline (preset), as wide and as deep" in names
    (same,) = [one for one in counted.networks if one.name == "baseline (preset), as wide and as deep"]
    assert (same.params, same.macs) == (counted.own.params, counted.own.macs)
    (published,) = [one for one in counted.networks if one.name == "baseline (preset)"]
    assert published.params > 10 * same.params


def test_costs_of_other_cells_are_not_put_beside_an_edge(counted, make_record):
    record = SearchRecord.from_dict(make_record(1, 1, blocks=2))
    assert edge_costs(counted, record) == {"normal": {}, "reduce": {}} == edge_costs(None, record)


def test_a_folder_without_a_configuration_that_is_understood_has_no_costs(tmp_path):
    Genotype.load("baseline").save(tmp_path / "genotype.json")
    assert count_costs_of_log(tmp_path) is None
    for content in ("search: {strategy: nonsense}", "a: [", "autoreid: {channels: 99999999}"):
        (tmp_path / "config.yaml").write_text(content)
        assert count_costs_of_log(tmp_path) is None
