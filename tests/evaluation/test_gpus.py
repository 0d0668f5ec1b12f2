"""faiss's limits on GPUs are known before it is asked; what it cannot do is done on the CPU, with a word."""

import logging

import faiss
import numpy as np
import pytest
import torch
from oracles import clustered

from torchreid_autoreid.evaluation import RetrievalIndex, evaluate
from torchreid_autoreid.evaluation.distances import find_devices
from torchreid_autoreid.evaluation.gpus import GIB, GpuPlan, index_bytes, plan_gpus, temporary_memory
from torchreid_autoreid.evaluation.space import Space

GALLERY = clustered(600, d=64, seed=1).features


def made(factory, d=64, metric=faiss.METRIC_L2):
    return faiss.index_factory(d, factory, metric)


def plan(factory, gpus=1, free=70 * GIB, total=80 * GIB, **options):
    return plan_gpus(made(factory, **options), [free] * gpus, [total] * gpus)


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "IVF16,Flat",
        "IVF16,SQ8",
        "IVF16,SQfp16",
        "IVF16,PQ16",
        "IDMap,Flat",
        "PCA32,IVF16,Flat",
        "OPQ16,IVF16,PQ16",
    ],
)
def test_what_faiss_has_on_gpus_is_searched_there(factory, gpus):
    assert not plan(factory, gpus).refusal


@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize(
    ("factory", "word"),
    [
        ("HNSW16", "IndexHNSW"),
        ("PQ16", "IndexPQ"),
        ("LSH", "IndexLSH"),
        ("SQ8", "IndexScalarQuantizer"),
        ("IDMap,HNSW16", "IndexHNSW"),
        ("PCA32,HNSW16", "IndexHNSW"),
        ("IVF16,PQ16+8", "IndexIVFPQR"),
        ("IVF16_HNSW8,Flat", "coarse quantizer IndexHNSWFlat"),
        ("IVF16,PQ16x4", "16 codes of 4 bits"),
        ("IVF16,PQ16x4fs", "FastScan"),
        ("IVF16,SQ6", "scalar quantizer"),
        ("Flat,RFlat", "IndexRefine"),
    ],
)
def test_what_faiss_leaves_on_the_cpu_is_known(factory, word, gpus):
    """With several GPUs faiss makes copies on the CPU of what it does not know, without a word."""
    assert word in plan(factory, gpus).refusal


def test_half_precision_vectors_are_for_one_gpu():
    assert not plan("SQfp16", 1).refusal
    assert "several GPUs" in plan("SQfp16", 2).refusal


@pytest.mark.parametrize(
    ("factory", "most"),
    [("Flat", 2048), ("IVF16,Flat", 2048), ("IVF16,SQfp16", 2048), ("IVF16,SQ8", 512), ("PCA32,IVF16,SQ4", 512)],
)
def test_quantizers_that_share_memory_find_fewer_neighbours(factory, most):
    assert plan(factory).most_neighbours == most


def test_tables_of_many_codes_are_halved():
    """48 KiB of shared memory: 48 codes of 256 float32 values, or 96 in float16."""
    assert [plan(f"IVF16,PQ{m}", d=192).half_tables for m in (32, 48, 64, 96)] == [False, False, True, True]
    assert "128 codes" in plan("IVF16,PQ128", d=256).refusal


def test_more_lists_than_a_gpu_visits():
    index = made("IVF4096,Flat")
    index.nprobe = 3000
    assert "nprobe is 3000" in plan_gpus(index, [GIB * 70], [GIB * 80]).refusal


def test_dimensions_that_fill_the_shared_memory():
    assert "6144 dimensions" in plan("IVF16,SQ8", d=8192).refusal


def test_an_index_that_does_not_fit_is_shared_out_or_stays():
    """faiss's own working memory counts: 1.5 GiB of a large GPU."""
    index = faiss.IndexFlatL2(64)
    index.add(np.ones((1 << 12, 64), np.float32))
    size = index_bytes(index)
    assert size == (1 << 12) * (4 * 64 + 8)
    total = 80 * GIB
    fits, half = (int(share * size / 0.9) + temporary_memory(total) for share in (1.01, 0.6))
    assert plan_gpus(index, [fits], [total]) == GpuPlan()
    assert not plan_gpus(index, [fits] * 2, [total] * 2).shard
    assert plan_gpus(index, [half] * 2, [total] * 2) == GpuPlan(shard=True)
    assert plan_gpus(index, [fits, half], [total] * 2).shard
    assert "free memory" in plan_gpus(index, [half], [total]).refusal
    assert "free memory" in plan_gpus(index, [temporary_memory(total)] * 2, [total] * 2).refusal
    assert [temporary_memory(x * GIB) / GIB for x in (4, 8, 24)] == [0.5, 1, 1.5]


@pytest.fixture
def two_gpus(monkeypatch):
    """GPUs for faiss and PyTorch to say they have; the index stays on the CPU."""
    cloned = []

    def clone(index, options, gpus):
        cloned.append((gpus, options.shard, options.useFloat16))
        return faiss.clone_index(index)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(faiss, "index_cpu_to_gpus_list", clone)
    return cloned


def test_one_gpu_is_one_gpu(two_gpus):
    RetrievalIndex.build(GALLERY, "IVF4,Flat", device="cuda:1")
    RetrievalIndex.build(GALLERY, "IVF4,Flat", device="cuda")
    assert two_gpus == [([1], False, False), ([0, 1], False, False)]
    assert [str(device) for device in find_devices("cuda:1")] == ["cuda:1"]


def test_what_stays_on_the_cpu_is_told(two_gpus, caplog):
    caplog.set_level(logging.WARNING)
    index = RetrievalIndex.build(GALLERY, "HNSW8", device="cuda")
    assert index.searcher is index.index
    assert not two_gpus
    assert "HNSW8 is searched on the CPU: faiss has no IndexHNSWFlat on GPUs" in caplog.text


def test_more_neighbours_than_a_gpu_finds_are_searched_on_the_cpu(two_gpus, caplog):
    caplog.set_level(logging.WARNING)
    index = RetrievalIndex.build(GALLERY, "IVF4,SQ8", device="cuda")
    assert index.searcher is not index.index
    index.searcher = None  # must not be asked
    positions, _ = index.search(GALLERY[:3], 513)
    assert positions.shape == (3, 513)
    assert "IVF4,SQ8 is searched on the CPU: faiss finds at most 512 nearest on GPUs" in caplog.text


def test_large_tables_are_asked_for_in_float16(two_gpus):
    RetrievalIndex(made("IVF2,PQ64"), Space("euclidean"), "IVF2,PQ64").use("cuda:0")
    assert two_gpus == [([0], False, True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("factory", ["IDMap,Flat", "IVF4,Flat", "IVF4,SQ8", "IVF2,PQ64", "HNSW8", "PCA32,IVF4,Flat"])
@pytest.mark.parametrize("k", [5, 600])
def test_gpus_find_what_the_cpu_finds(factory, k):
    query, gallery = clustered(20, d=128, seed=0), clustered(600, d=128, seed=1)
    cpu, gpu = (
        evaluate(query, gallery, index=factory, num_retrieved=k, device=device, topk=5) for device in ("cpu", "cuda")
    )
    assert (cpu.topk_indices == gpu.topk_indices).mean() > 0.95
    np.testing.assert_allclose(cpu.mAP, gpu.mAP, atol=0.01)
