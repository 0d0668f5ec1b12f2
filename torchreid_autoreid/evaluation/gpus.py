"""What faiss can search on GPUs, from its documentation and source, decided before it is asked.

faiss answers beyond its limits in four ways: with an exception, with a failed assertion that ends the process, with an
index that silently stays on the CPU, or by running out of memory later. So every limit is looked at here first.
https://github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss

GIB = 1 << 30
MOST_NEIGHBOURS = 2048  # k and nprobe, GPU_MAX_SELECTION_K
MOST_NEIGHBOURS_SQ = 512  # of 8- and 4-bit scalar quantizers: beyond, shared memory runs out (faiss #3207, #4509)
SHARED_MEMORY = 48 << 10  # bytes of a block without opting in for more
PQ_SIZES = {1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96}  # IVFPQ::isSupportedPQCodeLength
SLACK = 0.9  # share of the free memory that an index may take: lists are allocated in steps


@dataclass(frozen=True)
class GpuPlan:
    """How to search an index on GPUs.

    Attributes:
        refusal: why it cannot be, else empty.
        shard: each GPU holds a part instead of a copy.
        half_tables: product quantizer tables in float16, which do not fit in shared memory otherwise.
        most_neighbours: the largest k.
    """

    refusal: str = ""
    shard: bool = False
    half_tables: bool = False
    most_neighbours: int = MOST_NEIGHBOURS


def plan_gpus(index: faiss.Index, free: Sequence[int], total: Sequence[int]) -> GpuPlan:
    """Whether and how faiss can search an index on GPUs with these bytes of memory, free and in all.

    Example:
        >>> plan_gpus(faiss.index_factory(8, "HNSW8"), free=[GIB], total=[GIB]).refusal
        'faiss has no IndexHNSWFlat on GPUs'
    """
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform | faiss.IndexIDMap):
        inner = faiss.downcast_index(inner.index)
    name = type(inner).__name__
    plain_sq = isinstance(inner, faiss.IndexScalarQuantizer) and inner.sq.qtype == faiss.ScalarQuantizer.QT_fp16
    known = isinstance(
        inner, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQ
    ) and not isinstance(inner, faiss.IndexIVFPQR)
    if not known and not (plain_sq and len(free) == 1):  # several GPUs would get copies of this one on the CPU
        return GpuPlan(f"faiss has no {name} on {'GPUs' if not plain_sq else 'several GPUs'}")
    if inner.metric_type not in (faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT):
        return GpuPlan(f"faiss knows no other metrics on GPUs than L2 and inner product, and {name} has another")
    half_tables, most = False, MOST_NEIGHBOURS
    if isinstance(inner, faiss.IndexIVF):
        coarse = faiss.downcast_index(inner.quantizer)
        if not isinstance(coarse, faiss.IndexFlat):
            return GpuPlan(f"faiss has no coarse quantizer {type(coarse).__name__} on GPUs")
        if inner.nprobe > MOST_NEIGHBOURS:
            return GpuPlan(f"faiss visits at most {MOST_NEIGHBOURS} lists on GPUs, and nprobe is {inner.nprobe}")
    if isinstance(inner, faiss.IndexIVFPQ):
        codes, bits = inner.pq.M, inner.pq.nbits
        if bits != 8 or codes not in PQ_SIZES:
            return GpuPlan(f"faiss has no product quantizer of {codes} codes of {bits} bits on GPUs")
        half_tables = 4 * codes * 256 > SHARED_MEMORY
    if isinstance(inner, faiss.IndexIVFScalarQuantizer):
        kind = inner.sq.qtype
        supported = ("QT_8bit", "QT_8bit_uniform", "QT_8bit_direct", "QT_4bit", "QT_4bit_uniform", "QT_fp16")
        if kind not in {getattr(faiss.ScalarQuantizer, name) for name in supported}:
            return GpuPlan("faiss has no scalar quantizer of this kind on GPUs")
        if kind in (faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_4bit):
            most = MOST_NEIGHBOURS_SQ
            if inner.d >= SHARED_MEMORY // 8:
                return GpuPlan(f"faiss quantizes fewer than {SHARED_MEMORY // 8} dimensions on GPUs, not {inner.d}")
    size = index_bytes(inner)
    room = min(SLACK * (f - temporary_memory(t)) for f, t in zip(free, total, strict=True))
    shard = len(free) > 1 and size > room
    if size > room * (len(free) if shard else 1):
        return GpuPlan(f"it takes {size / GIB:.1f} GiB, more than the free memory of the GPUs")
    return GpuPlan(shard=shard, half_tables=half_tables, most_neighbours=most)


def temporary_memory(total: int) -> int:
    """Bytes that faiss takes of a GPU of this size before any index (StandardGpuResources)."""
    if total <= 4 * GIB:
        return GIB // 2
    return GIB if total <= 8 * GIB else GIB * 3 // 2


def index_bytes(index: faiss.Index) -> int:
    """About how much memory the vectors, their ids and the centroids take on a GPU."""
    centroids = 4 * index.d * index.nlist if isinstance(index, faiss.IndexIVF) else 0
    return int(index.ntotal) * (int(index.sa_code_size()) + 8) + centroids
