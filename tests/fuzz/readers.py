"""What is fuzzed: a reader of each format, given any bytes. All that it may do is return, or raise ``UserError``."""

import os
from pathlib import Path

import numpy as np

from torchreid_autoreid.checkpoint import load_checkpoint
from torchreid_autoreid.config.check import check_search_config, check_train_config
from torchreid_autoreid.config.read import load_config
from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import load_embeddings
from torchreid_autoreid.evaluation.graph_file import GraphFile
from torchreid_autoreid.evaluation.index_file import BadIndexError, check_index, read_limited
from torchreid_autoreid.evaluation.ranking import Farthest, Nearest
from torchreid_autoreid.evaluation.space import CPU, Space
from torchreid_autoreid.genotype import Genotype
from torchreid_autoreid.provenance import Provenance
from torchreid_autoreid.queries import Queries
from torchreid_autoreid.report.history import read_history
from torchreid_autoreid.spec import Description


def read_config(path):
    cfg = load_config(str(path))
    for check in (check_search_config, check_train_config):
        try:
            check(cfg)
        except UserError as error:
            one_line(error)


def read_options(path):
    """Words of the command line."""
    load_config(opts=path.read_bytes().decode("utf-8", errors="replace").split("\n"))


def read_checkpoint(path):
    load_checkpoint(path)
    Description.of_checkpoint(path)


def read_index(path):
    """What the process does that tries an index, and then all that a user can: visit every list."""
    try:
        index = read_limited(path)
        check_index(index)
        queries = np.random.default_rng(0).standard_normal((5, index.d)).astype(np.float32)
        _, near = index.search(queries, index.ntotal)
    except (RuntimeError, MemoryError, BadIndexError):
        return
    assert near.min() >= -1
    assert near.max() < index.ntotal


def graph_file(path):
    """The graph of four items, in two pieces of two."""
    return GraphFile(str(path), Space("cosine").prepare(np.eye(4, dtype=np.float32), CPU), 2, 2)


def read_graph(path):
    """What a search goes on from, and a whole one's neighbours."""
    nearest, farthest = Nearest(4, 3), Farthest(4)
    done = graph_file(path).read(nearest, farthest)
    assert 0 <= done <= 2
    assert nearest.keys.shape == (4, 3)
    assert not farthest.values.isnan().any()
    positions = nearest.complete()[0] if done == 2 else nearest.result()[0]
    assert ((positions >= -1) & (positions < 4)).all()


READERS = {
    "genotype": Genotype.load,
    "config": read_config,
    "options": read_options,
    "npz": load_embeddings,
    "history": read_history,
    "checkpoint": read_checkpoint,
    "index": read_index,
    "graph": read_graph,
    "queries": Queries.load,
    "provenance": Provenance.load,
}


def read(name, content, path):
    """Gives a reader these bytes as a file."""
    Path(path).write_bytes(content)
    try:
        READERS[name](Path(path))
    except UserError as error:
        one_line(error)
    finally:
        os.unlink(path)


def one_line(error):
    assert len(" ".join(str(error).split())) < 5000
