"""Index files from elsewhere: read, checked and searched by a process that may die, before this one reads them.

faiss reads them in C++. It compares most numbers of a file with one another, but not all: an identifier, an edge of a
graph or a length that points outside ends in a crash, or in figures from memory that is not the index's; and lists that
are kept in another file make it open any path for writing. So a process of its own (:mod:`.apart` runs ``main``) reads
the file while it can open no other and can take bounded memory and time; accepts only kinds of indexes all of whose
numbers it knows how to check, down to every part; and searches. What it accepts is read again here.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterator
from typing import Any

import faiss
import numpy as np

__all__ = [
    "KINDS",
    "BadIndexError",
    "check_index",
    "check_search_length",
    "precompute",
    "read_limited",
    "reason",
    "uncheckable",
]

MOST_CANDIDATES = 1 << 20  # of a query that may be asked for whatever the size of an index
_QUERIES, _NEAREST = 4, 32


class BadIndexError(Exception):
    """What is wrong with the file, as words that follow its name."""


#: A table of products is larger than the codes, so a limit by the size of the file would refuse it; see ``precompute``.
_FLAGS = faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE


def read_limited(path: str | os.PathLike[str], opened: Callable[[], None] = lambda: None) -> faiss.Index:
    """Reads a file with faiss's own limits set as tight as it allows: by default a hundred bytes may claim a terabyte.

    No vector can be longer than the file, and no loop over items of it can have more rounds than it has bytes.

    Args:
        path: the file.
        opened: called once it is open.

    Raises:
        RuntimeError, MemoryError: faiss's own.
    """
    size = max(1, os.stat(path).st_size)
    limits = faiss.get_deserialization_vector_byte_limit(), faiss.get_deserialization_loop_limit()
    faiss.set_deserialization_vector_byte_limit(min(limits[0], size + 1))  # the limit itself is refused
    faiss.set_deserialization_loop_limit(size)
    try:
        reader = faiss.FileIOReader(os.fspath(path))
        opened()
        return faiss.read_index(reader, _FLAGS)
    finally:
        faiss.set_deserialization_vector_byte_limit(limits[0])
        faiss.set_deserialization_loop_limit(limits[1])


def precompute(index: faiss.Index) -> None:
    """Makes the tables that faiss makes when it reads a file (of at most 2 GiB), once the index has been checked."""
    part = faiss.downcast_index(index)
    if isinstance(part, faiss.IndexIVFPQ) and part.by_residual and part.metric_type == faiss.METRIC_L2:
        part.use_precomputed_table = 0
        part.precompute_table()
    for inner in _parts(part):
        precompute(inner)


# --- the process ----------------------------------------------------------


def _open_nothing() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def main(path: str) -> str:
    """What is wrong with a file, as words that follow its name; empty if nothing is."""
    random = np.random.default_rng(0)  # NumPy reads this part of it late
    try:
        try:
            index = read_limited(path, _open_nothing)
        except RuntimeError as error:
            raise BadIndexError(f"is not a faiss index ({reason(error)[:160]})") from None
        check_index(index)
        precompute(index)
        queries = random.standard_normal((_QUERIES, index.d)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        try:
            index.search(queries, min(_NEAREST, index.ntotal))
        except RuntimeError as error:
            raise BadIndexError(f"cannot be searched ({reason(error)[:160]})") from None
    except BadIndexError as error:
        return str(error)
    return ""


def reason(error: Exception) -> str:
    """The last words of a faiss exception, without its C++ location."""
    last = (str(error).strip().splitlines() or [""])[-1]
    return re.split(r"Error: |\.(?:cpp|h|cu):\d+: ", last)[-1].strip() or type(error).__name__


# --- what is known of each kind -------------------------------------------


def check_index(index: faiss.Index) -> None:
    """Looks at an index and all its parts.

    Raises:
        BadIndexError: a kind that is not known, a part that is not trained, a number that does not fit the others.
    """
    if name := uncheckable(index):
        raise BadIndexError(f"holds an {name}, of which faiss does not show all that would have to be checked")
    _need(index.ntotal > 0, "holds no vectors")
    _check(faiss.downcast_index(index))  # which owns nothing, so ``index`` has to live on


def uncheckable(index: faiss.Index) -> str:
    """The name of the first part of an index that no file is read with; empty if there is none."""
    kind = faiss.downcast_index(index)
    if type(kind) not in KINDS:
        return type(kind).__name__
    if isinstance(kind, faiss.IndexPreTransform):
        for transform in _transforms(kind):
            if type(transform) not in _TRANSFORMS:
                return type(transform).__name__
    return next((name for part in _parts(kind) if (name := uncheckable(part))), "")


def check_search_length(index: faiss.Index) -> None:
    """Looks at how many candidates a search of an index asks for.

    Raises:
        BadIndexError: more than there can be.
    """
    kind = faiss.downcast_index(index)
    most = max(MOST_CANDIDATES, kind.ntotal)
    if isinstance(kind, faiss.IndexHNSW):
        _need(1 <= kind.hnsw.efSearch <= most, f"asks for {kind.hnsw.efSearch} candidates of each query (efSearch)")
    if isinstance(kind, faiss.IndexNSG):
        _need(1 <= kind.nsg.search_L <= most, f"asks for {kind.nsg.search_L} candidates of each query (search_L)")
    if isinstance(kind, faiss.IndexRefine):
        _need(1 <= kind.k_factor <= 1 << 10, f"refines {kind.k_factor} times the items that are asked for (k_factor)")
    if isinstance(kind, faiss.IndexIVF):
        _need(1 <= kind.nprobe <= most, f"visits {kind.nprobe} lists (nprobe)")
    for part in _parts(kind):
        check_search_length(part)


def _need(right: Any, wrong: str) -> None:
    if not right:
        raise BadIndexError(wrong)


def _fits(found: Any, expected: Any, what: str) -> None:
    _need(found == expected, f"has {what} of {found} where {expected} fit")


def _parts(index: faiss.Index) -> Iterator[faiss.Index]:
    """The indexes inside an index."""
    for name in ("storage", "quantizer", "index", "base_index", "refine_index"):
        part = getattr(index, name, None)
        if isinstance(part, faiss.Index):
            yield faiss.downcast_index(part)


def _transforms(index: Any) -> Iterator[Any]:
    for number in range(index.chain.size()):
        yield faiss.downcast_VectorTransform(index.chain.at(number))


def _check(index: faiss.Index, items: int | None = None) -> None:
    """One index, which is a part of ``items`` items, and its parts."""
    name = type(index).__name__
    _need(index.d >= 1 and index.ntotal >= 0, f"has {index.ntotal} vectors of {index.d} dimensions")
    _need(bool(index.is_trained), f"holds an {name} that is not trained")
    _need(index.metric_type in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT), f"has the metric {index.metric_type}")
    if items is not None:
        _fits(index.ntotal, items, f"an {name} with a number of vectors")
    check_search_length(index)
    KINDS[type(index)](index)


def _check_flat(index: Any) -> None:
    _check_codes(index, 4 * index.d)


def _check_codes(index: Any, code_size: int) -> None:
    _fits(index.code_size, code_size, "a code size")
    _fits(index.codes.size(), index.ntotal * code_size, "bytes of codes")


_SQ_BITS = {
    "8bit": 8, "4bit": 4, "6bit": 6, "8bit_uniform": 8, "4bit_uniform": 4, "fp16": 16, "bf16": 16, "8bit_direct": 8,
    "8bit_direct_signed": 8,
}  # fmt: skip
_SQ_TRAINED = {"8bit": 2, "4bit": 2, "6bit": 2}  # numbers a dimension


def _scalar_code(sq: Any, d: int) -> int:
    """Bytes of a code, once the quantizer has been checked."""
    kinds = {getattr(faiss.ScalarQuantizer, f"QT_{name}"): name for name in _SQ_BITS}
    _need(sq.qtype in kinds, f"has a scalar quantizer of the type {sq.qtype}")
    name = kinds[sq.qtype]
    _fits(sq.d, d, "a scalar quantizer with dimensions")
    needed = 2 if name.endswith("_uniform") else _SQ_TRAINED.get(name, 0) * d
    _need(sq.trained.size() >= needed, f"has {sq.trained.size()} numbers in a scalar quantizer that needs {needed}")
    code_size = (d * _SQ_BITS[name] + 7) // 8
    _fits(sq.code_size, code_size, "a code size")
    return code_size


def _product_code(pq: Any, d: int) -> int:
    _fits(pq.d, d, "a product quantizer with dimensions")
    _need(pq.M >= 1 and d % pq.M == 0, f"has a product quantizer of {pq.M} parts for {d} dimensions")
    _need(1 <= pq.nbits <= 16, f"has a product quantizer of {pq.nbits} bits")
    _fits((pq.dsub, pq.ksub), (d // pq.M, 1 << pq.nbits), "a product quantizer")
    _fits(pq.centroids.size(), d << pq.nbits, "numbers of centroids")
    code_size = (pq.M * pq.nbits + 7) // 8
    _fits(pq.code_size, code_size, "a code size")
    return code_size


def _check_sq(index: Any) -> None:
    _check_codes(index, _scalar_code(index.sq, index.d))


def _check_pq(index: Any) -> None:
    _check_codes(index, _product_code(index.pq, index.d))
    _fits(index.search_type, faiss.IndexPQ.ST_PQ, "a way of search")


def _check_pq_fast_scan(index: Any) -> None:
    _fits(index.code_size, _product_code(index.pq, index.d), "a code size")
    _fits((index.nbits, index.M, index.ksub), (4, index.pq.M, 16), "a product quantizer")
    _fits(index.pq.nbits, 4, "a number of bits")
    _need(32 <= index.bbs <= 1 << 16 and index.bbs % 32 == 0, f"has blocks of {index.bbs}")
    _fits(index.M2, -(-index.M // 2) * 2, "parts of a code")
    _fits(index.ntotal2, -(-index.ntotal // index.bbs) * index.bbs, "a padded number of vectors")
    _fits(index.codes.size(), index.ntotal2 * index.M2 // 2, "bytes of codes")
    _fits((index.implem, index.skip, index.qbs), (0, 0, 0), "a way of search")


def _check_lsh(index: Any) -> None:
    _need(index.nbits >= 1, f"has codes of {index.nbits} bits")
    _check_codes(index, (index.nbits + 7) // 8)
    if index.rotate_data:
        _check_linear(index.rrot)
        _fits((index.rrot.d_in, index.rrot.d_out), (index.d, index.nbits), "a rotation")
    else:
        _need(index.nbits <= index.d, f"has codes of {index.nbits} bits for {index.d} dimensions")
    if index.train_thresholds:
        _fits(index.thresholds.size(), index.nbits, "thresholds")


def _array(vector: Any) -> np.ndarray:
    if not vector.size():
        return np.empty(0, np.int64)
    return faiss.rev_swig_ptr(vector.data(), vector.size())


def _check_hnsw(index: Any) -> None:
    graph, n = index.hnsw, index.ntotal
    storage = faiss.downcast_index(index.storage)
    expected = {faiss.IndexHNSWFlat: _FLAT, faiss.IndexHNSWSQ: {faiss.IndexScalarQuantizer}}
    _need(type(storage) in expected.get(type(index), {faiss.IndexPQ}), f"stores vectors in an {type(storage).__name__}")
    _fits((storage.d, storage.metric_type), (index.d, index.metric_type), "a storage")
    _check(storage, n)
    _fits(graph.search_method, graph.SM_DEFAULT, "a way of search")
    levels, offsets, neighbours = (_array(getattr(graph, name)) for name in ("levels", "offsets", "neighbors"))
    room = _array(graph.cum_nneighbor_per_level).astype(np.int64)
    _fits((len(levels), len(offsets)), (n, n + 1), "levels and offsets")
    _need(len(room) > 1 and room[0] == 0 and (np.diff(room) >= 0).all(), "has a graph without room")
    _need((levels >= 1).all() and (levels < len(room)).all(), "has levels that its graph does not have")
    _need(offsets[0] == 0 and (np.diff(offsets.astype(np.int64)) == room[levels]).all(), "has a torn graph")
    _fits(len(neighbours), int(offsets[-1]), "edges")
    _need((neighbours >= -1).all() and (neighbours < n).all(), "has edges to vectors that it does not hold")
    _need(0 <= graph.entry_point < n, f"begins at the vector {graph.entry_point} of {n}")
    _fits(graph.max_level, levels[graph.entry_point] - 1, "a highest level")
    _fits(graph.max_level, levels.max() - 1, "a highest level")
    # An edge of a level must lead to a vector that has this level too.
    for level in range(1, graph.max_level + 1):
        own = np.flatnonzero(levels > level)
        places = offsets[own].astype(np.int64)[:, None] + np.arange(room[level], room[level + 1])
        ends = neighbours[places]
        _need((levels[ends[ends >= 0]] > level).all(), "has edges that leave their level")


def _check_ivf(index: Any) -> None:
    quantizer = faiss.downcast_index(index.quantizer)
    _need(type(quantizer) in _COARSE, f"has a coarse quantizer {type(quantizer).__name__}")
    _fits(quantizer.d, index.d, "a coarse quantizer with dimensions")
    _need(index.nlist >= 1, f"has {index.nlist} lists")
    _check(quantizer, index.nlist)
    if isinstance(index, faiss.IndexIVFPQ):
        code_size = _product_code(index.pq, index.d)
        _fits(index.polysemous_ht, 0, "a threshold of Hamming distances")
    elif isinstance(index, faiss.IndexIVFScalarQuantizer):
        code_size = _scalar_code(index.sq, index.d)
    else:
        code_size = 4 * index.d
    _fits(index.code_size, code_size, "a code size")
    _fits(index.parallel_mode, 0, "a way of search")
    lists = faiss.downcast_InvertedLists(index.invlists)
    _need(type(lists) is faiss.ArrayInvertedLists, f"keeps its lists as {type(lists).__name__}, not in the file")
    _fits((lists.nlist, lists.code_size), (index.nlist, code_size), "lists")
    _fits(lists.codes.size(), index.nlist, "lists of codes")
    ids = [np.empty(0, np.int64)]
    for number in range(index.nlist):
        size = lists.list_size(number)
        _fits(lists.codes.at(number).size(), size * code_size, "bytes of codes in a list")
        if size:
            ids.append(faiss.rev_swig_ptr(lists.get_ids(number), size))
    _check_ids(np.concatenate(ids), index.ntotal)


def _check_ids(ids: np.ndarray, n: int) -> None:
    """Each position of the gallery is named once."""
    _fits(len(ids), n, "a number of identifiers")
    _need(len(ids) == 0 or (ids.min() >= 0 and ids.max() < n), f"names items that are none of its {n}")
    _need((np.bincount(ids, minlength=n) == 1).all(), "names an item twice")


def _check_map(index: Any) -> None:
    inner = faiss.downcast_index(index.index)
    _fits((inner.d, inner.metric_type), (index.d, index.metric_type), "an index inside")
    _check(inner, index.ntotal)
    _check_ids(_array(index.id_map), index.ntotal)


def _check_refine(index: Any) -> None:
    base, refine = faiss.downcast_index(index.base_index), faiss.downcast_index(index.refine_index)
    _need(type(refine) in _STORES, f"refines by an {type(refine).__name__}")
    for part in (base, refine):
        _fits(part.d, index.d, "a part with dimensions")
        _check(part, index.ntotal)


def _check_multi(index: Any) -> None:
    _product_code(index.pq, index.d)
    _fits(index.ntotal, 1 << (index.pq.M * index.pq.nbits), "clusters")


def _check_pre_transform(index: Any) -> None:
    d = index.d
    for transform in _transforms(index):
        _need(bool(transform.is_trained), f"has a {type(transform).__name__} that is not trained")
        _fits(transform.d_in, d, f"a {type(transform).__name__} with dimensions")
        _need(transform.d_out >= 1, f"makes vectors of {transform.d_out} dimensions")
        _TRANSFORMS[type(transform)](transform)
        d = transform.d_out
    inner = faiss.downcast_index(index.index)
    _fits(inner.d, d, "an index inside with dimensions")
    _check(inner, index.ntotal)


def _check_linear(transform: Any) -> None:
    _fits(transform.A.size(), transform.d_in * transform.d_out, "numbers of a matrix")
    if transform.have_bias:
        _fits(transform.b.size(), transform.d_out, "numbers of a bias")


def _check_centring(transform: Any) -> None:
    _fits((transform.mean.size(), transform.d_out), (transform.d_in, transform.d_in), "numbers of a centre")
    _need(bool(np.isfinite(faiss.vector_to_array(transform.mean)).all()), "has a centre that is not finite")


def _check_norm(transform: Any) -> None:
    _fits((transform.norm, transform.d_out), (2, transform.d_in), "a normalisation")


def _check_remap(transform: Any) -> None:
    places = _array(transform.map)
    _fits(len(places), transform.d_out, "dimensions")
    _need((places >= -1).all() and (places < transform.d_in).all(), "has dimensions that are none of its own")


_FLAT = {faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP}
_STORES = {*_FLAT, faiss.IndexScalarQuantizer, faiss.IndexPQ}
_GRAPHS = {faiss.IndexHNSWFlat, faiss.IndexHNSWSQ, faiss.IndexHNSWPQ}
_COARSE = {*_STORES, *_GRAPHS, faiss.MultiIndexQuantizer}
_TRANSFORMS: dict[type, Callable[[Any], None]] = {
    **dict.fromkeys(
        (faiss.LinearTransform, faiss.RandomRotationMatrix, faiss.PCAMatrix, faiss.OPQMatrix), _check_linear
    ),
    faiss.CenteringTransform: _check_centring,
    faiss.NormalizationTransform: _check_norm,
    faiss.RemapDimensionsTransform: _check_remap,
}
#: The kinds that are read from files, and what looks at one of each. Others are built anew.
KINDS: dict[type, Callable[[Any], None]] = {
    **dict.fromkeys(_FLAT, _check_flat),
    faiss.IndexScalarQuantizer: _check_sq,
    faiss.IndexPQ: _check_pq,
    faiss.IndexPQFastScan: _check_pq_fast_scan,
    faiss.IndexLSH: _check_lsh,
    **dict.fromkeys(_GRAPHS, _check_hnsw),
    **dict.fromkeys((faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ), _check_ivf),
    faiss.MultiIndexQuantizer: _check_multi,
    **dict.fromkeys((faiss.IndexIDMap, faiss.IndexIDMap2), _check_map),
    **dict.fromkeys((faiss.IndexRefine, faiss.IndexRefineFlat), _check_refine),
    faiss.IndexPreTransform: _check_pre_transform,
}
