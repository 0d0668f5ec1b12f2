"""Index files from elsewhere: what is accepted, what is refused, and a process that dies of one."""

import os
import struct

import faiss
import numpy as np
import pytest
from oracles import clustered

from torchreid_autoreid.errors import UserError
from torchreid_autoreid.evaluation import RetrievalIndex, index_file
from torchreid_autoreid.evaluation.apart import in_a_process
from torchreid_autoreid.evaluation.index_file import BadIndexError, check_index, read_limited

VECTORS = clustered(600, seed=1, spread=1.0).features
KINDS = [
    *("Flat", "SQ8", "SQ4", "SQfp16", "PQ4x4", "PQ4x4fs", "LSHrt", "HNSW4", "HNSW4,SQ8", "HNSW4,PQ4x4np"),
    *("IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4", "IVF4_HNSW4,Flat", "IMI2x4,Flat", "PCA4,IVF4,Flat", "OPQ4,IVF4,PQ4x4np"),
    *("L2norm,Flat", "Pad12,Flat", "IDMap,Flat", "IDMap2,IVF4,Flat", "IVF4,PQ4x4np,RFlat", "IVF4,PQ4x4np,Refine(SQ8)"),
]


def build(factory):
    index = faiss.index_factory(8, factory)
    index.train(VECTORS)
    if factory.startswith("IDMap"):
        index.add_with_ids(VECTORS, np.arange(len(VECTORS)))
    else:
        index.add(VECTORS)
    return index


def written(index, path):
    faiss.write_index(index, str(path))
    return read_limited(path)


@pytest.mark.parametrize("factory", KINDS)
def test_what_faiss_wrote_is_accepted(tmp_path, factory):
    check_index(written(build(factory), tmp_path / "a.index"))


def test_the_process_accepts_it_too(tmp_path):
    written(build("PCA4,IVF4,PQ4x4np,RFlat"), tmp_path / "a.index")
    assert in_a_process(index_file.__file__, "read", tmp_path / "a.index") == ""


@pytest.mark.parametrize(
    ("factory", "name"),
    [("NSG8", "IndexNSGFlat"), ("IVF4,PQ4x4fs", "IndexIVFPQFastScan"), ("ITQ8,LSH", "ITQTransform"), ("RQ2x4", "Ind")],
)
def test_kinds_that_cannot_be_checked_are_neither_saved_nor_read(tmp_path, factory, name):
    built = RetrievalIndex.build(VECTORS, factory, "euclidean")
    with pytest.raises(UserError, match=f"an {name}.* is not read from files"):
        built.save(tmp_path / "a.index")
    assert not (tmp_path / "a.index").exists()
    with pytest.raises(BadIndexError, match=f"holds an {name}"):
        check_index(written(built.index, tmp_path / "a.index"))


def set_edge(index, place, number):
    edges = index.hnsw.neighbors
    faiss.rev_swig_ptr(edges.data(), edges.size())[place] = number


def set_id(index, number):
    lists = faiss.downcast_InvertedLists(index.invlists)
    faiss.rev_swig_ptr(lists.get_ids(0), lists.list_size(0))[0] = number


def set_to(name, value):
    def change(index):
        owner, _, last = name.rpartition(".")
        for part in filter(None, owner.split(".")):
            index = getattr(index, part)
        setattr(index, last, value)

    return change


def upper_edge(index):
    """An edge of the second level to a vector that has the first one only."""
    levels = faiss.vector_to_array(index.hnsw.levels)
    first = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)[1]
    offset = faiss.vector_to_array(index.hnsw.offsets)[np.flatnonzero(levels > 1)[0]]
    set_edge(index, int(offset) + int(first), int(np.flatnonzero(levels == 1)[0]))


WRONG = {
    "an edge to nothing": ("HNSW4", lambda index: set_edge(index, 3, 600), "edges to vectors"),
    "an edge before all": ("HNSW4", lambda index: set_edge(index, 3, -2), "edges to vectors"),
    "an edge that leaves its level": ("HNSW4", upper_edge, "leave their level"),
    "an entry outside": ("HNSW4", set_to("hnsw.entry_point", 600), "begins at the vector 600"),
    "an entry below": ("HNSW4", set_to("hnsw.entry_point", -1), "begins at the vector -1"),
    "more levels": ("HNSW4", set_to("hnsw.max_level", 9), "highest level"),
    "endless candidates": ("HNSW4", set_to("hnsw.efSearch", 2 * 10**9), "efSearch"),
    "an id outside": ("IVF4,Flat", lambda index: set_id(index, 600), "none of its 600"),
    "an id below": ("IVF4,Flat", lambda index: set_id(index, -1), "none of its 600"),
    "an id twice": ("IVF4,Flat", lambda index: set_id(index, 1), "twice"),
    "more vectors than codes": ("SQ8", set_to("ntotal", 601), "bytes of codes"),
    "more vectors than ids": ("IVF4,SQ8", set_to("ntotal", 601), "identifiers"),
    "not trained": ("IVF4,PQ4x4np", set_to("is_trained", False), "not trained"),
    "another metric": ("Flat", set_to("metric_type", 4), "metric"),
    "a quantizer that is not trained": ("IVF4,Flat", set_to("quantizer.is_trained", False), "not trained"),
    "another length": ("IVF4,PQ4x4np", set_to("pq.d", 12), "dimensions"),
    "no vectors": ("Flat", lambda index: index.reset(), "no vectors"),
    "endless refinement": ("IVF4,PQ4x4np,RFlat", set_to("k_factor", 1e9), "k_factor"),
    "negative refinement": ("IVF4,PQ4x4np,RFlat", set_to("k_factor", float("nan")), "k_factor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_numbers_that_do_not_fit_are_named(name):
    factory, change, words = WRONG[name]
    index = build(factory)
    change(faiss.downcast_index(index))
    with pytest.raises(BadIndexError, match=words):
        check_index(index)


def test_a_search_length_without_end_is_refused():
    built = RetrievalIndex.build(VECTORS, "HNSW4")
    with pytest.raises(UserError, match=r"does not take the search parameters 'efSearch=2000000000'.*2000000000 cand"):
        built.set_parameters("efSearch=2000000000")


def test_an_index_whose_process_dies_is_told(tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    written(build("Flat"), tmp_path / "a.index")
    monkeypatch.setattr(index_file, "__file__", str(tmp_path / "dies.py"))
    with pytest.raises(
        UserError, match=r"a.index ends the process in which it is read and searched \(SIGABRT\); give a file"
    ):
        RetrievalIndex.load(tmp_path / "a.index", metric="euclidean")


def test_no_other_file_is_opened(tmp_path):
    """faiss opens the file of lists that an index names for reading and writing, wherever in the index it is named."""
    inner = faiss.index_factory(8, "IVF4,Flat")
    inner.train(VECTORS)
    lists = faiss.OnDiskInvertedLists(4, inner.code_size, str(tmp_path / "elsewhere"))
    inner.replace_invlists(lists)
    inner.add(VECTORS)
    faiss.write_index(faiss.IndexRefineFlat(inner, faiss.swig_ptr(VECTORS)), str(tmp_path / "a.index"))
    content = (tmp_path / "a.index").read_bytes()
    assert content.count(b"ilod") == 1
    os.remove(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "elsewhere")  # opening it for writing alone would hang
    assert "Too many open files" in in_a_process(index_file.__file__, "read", tmp_path / "a.index")


def test_lengths_that_multiply_take_no_memory(tmp_path):
    """Each list claims no more than the file has, all together a thousand times that."""
    clusters = 4096
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(8), 8, clusters)
    index.train(clustered(clusters, seed=2, spread=1.0).features)
    index.add(VECTORS)
    content = faiss.serialize_index(index).tobytes()
    place = content.index(b"ilar") + 20
    sizes = struct.pack("<4sQ", b"full", clusters) + np.full(clusters, len(content) // 32, "<u8").tobytes()
    (tmp_path / "a.index").write_bytes(content[:place] + sizes + content[place:])
    assert in_a_process(index_file.__file__, "read", tmp_path / "a.index") != ""
