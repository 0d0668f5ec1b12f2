"""Approximate search with any faiss index: built, searched, saved and loaded, on the CPU or on all GPUs."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import faiss
import numpy as np
import torch

from ..errors import UserError, short
from ..files import as_path
from . import index_file
from .apart import in_a_process
from .distances import check_metric, find_devices
from .embeddings import as_features, check_count, release
from .gpus import GpuPlan, plan_gpus
from .index_file import BadIndexError, check_search_length, precompute, read_limited, reason, uncheckable
from .pairwise import Progress, ranges
from .space import CPU, Space, index_space

_LOGGER = logging.getLogger(__name__)

TRAINING_VECTORS = 1 << 18
TRAINING_PER_CLUSTER = 64
ADDED_AT_ONCE = 1 << 14
QUERIES_AT_ONCE = 1 << 8
FAISS_METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "euclidean": faiss.METRIC_L2}


class RetrievalIndex:
    """A faiss index of gallery features, with the metric they are compared by.

    Make one with ``build`` or ``load``. Distances are those of ``evaluate``: 1 - cosine similarity, or squared
    euclidean.
    """

    def __init__(self, index: faiss.Index, space: Space, factory: str):
        self.index, self.space, self.factory = index, space, factory
        self.searcher, self.plan = index, GpuPlan()
        self.owner = index  # of the memory, where the index was a part of another

    @property
    def metric(self) -> str:
        """'cosine' or 'euclidean'."""
        return self.space.metric

    @classmethod
    def build(
        cls,
        features: np.ndarray,
        factory: str,
        metric: str = "cosine",
        device: str = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> RetrievalIndex:
        """Trains and fills an index.

        Args:
            features: (N, D) gallery features, in memory or memory-mapped; read in pieces. Where they are far from the
                origin and close to one another, the index holds them centred.
            factory: a faiss factory string: ``Flat``, ``IVF4096,Flat``, ``HNSW32``, ``OPQ64,IVF4096,PQ64``, ...
            metric: 'cosine' or 'euclidean'.
            device: 'cpu', 'cuda' to search on all GPUs, 'cuda:1' for one of them. What faiss cannot search on GPUs is
                searched on the CPU, and a warning says so.
            seed: chooses the training vectors, where the gallery is larger than is needed.
            progress: called as progress(what is being done, pieces done, pieces in all).

        Raises:
            UserError: an unknown factory string, one that does not fit the dimension or needs more vectors.

        Example:
            >>> index = RetrievalIndex.build(np.eye(8, dtype=np.float32), "HNSW4")
            >>> index.search(np.eye(8, dtype=np.float32)[:1], 1)[0].tolist()
            [[0]]
        """
        check_metric(metric)
        find_devices(device)
        features = as_features(features)
        dimension = features.shape[1]
        space = index_space(features, metric)
        # |a - b|^2 / 2 of unit vectors is 1 - cosine, and only differences can be centred.
        index = _make(dimension, factory, metric if space.centre is None else "euclidean")
        if not index.is_trained:
            if progress is not None:
                progress("training", 0, 1)
            sample = _training_sample(features, _num_clusters(index), seed)
            try:
                index.train(_ready(sample, space))
            except RuntimeError as error:
                raise UserError(
                    f"the gallery of {len(features)} is too small for the index {factory!r} ({reason(error)}); "
                    "use fewer clusters or bits, or 'Flat'"
                ) from error
            if progress is not None:
                progress("training", 1, 1)
        for start, stop in ranges(len(features), ADDED_AT_ONCE):
            vectors = _ready(features[start:stop], space)
            try:
                if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):  # these take positions as ids, nothing else
                    index.add_with_ids(vectors, np.arange(start, stop))
                else:
                    index.add(vectors)
            except RuntimeError as error:
                raise UserError(f"the index {factory!r} takes no vectors ({reason(error)}); use another") from error
            release(features)
            if progress is not None:
                progress("adding", stop, len(features))
        made = cls(index, space, factory)
        made.use(device)
        return made

    @classmethod
    def load(
        cls, path: str | os.PathLike, dimension: int | None = None, metric: str = "cosine", device: str = "cpu"
    ) -> RetrievalIndex:
        """An index that ``save`` or faiss wrote.

        The file is not trusted: see ``index_file``.

        Args:
            path: the file.
            dimension: what the features have, to be checked.
            metric: what the index was built for, to be checked.
            device: 'cpu' or 'cuda'.

        Raises:
            UserError: no such file, not a faiss index, of a kind that is not read from files, numbers that do not fit
                one another, vectors kept in another file, another dimension or metric.
        """
        check_metric(metric)
        path = as_path(path)
        if not path.is_file():
            raise UserError(f"there is no index file {path}; build one and save it first")
        index = _read(path)
        if dimension is not None and index.d != dimension:
            raise UserError(f"the index {path} has {index.d} dimensions, the features {dimension}; build it anew")
        if index.metric_type != FAISS_METRICS[metric]:
            other = "euclidean" if metric == "cosine" else "cosine"
            raise UserError(
                f"the index {path} was not built for metric={metric!r}; use metric={other!r} or build it anew"
            )
        name = f"{type(index).__name__} from {path.name}"
        inner, centre = _without_centring(index, path)
        loaded = cls(inner, Space(metric, centre), name)
        loaded.owner = index
        loaded.use(device)
        return loaded

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index as a plain faiss file.

        Raises:
            UserError: an index for cosine that faiss has for euclidean distances only; its file would not tell. One of
                a kind that is not read from files.
        """
        if name := uncheckable(self.index):
            raise UserError(
                f"an {name} is not read from files, since faiss does not show all that would have to be checked; use "
                "another index, such as IVF1024,Flat or HNSW32, or build this one each time"
            )
        index, centre = self.index, self.space.centre
        if centre is not None and (self.metric == "cosine" or (centre != centre.astype(np.float32)).any()):
            raise UserError(
                f"the features are so close to one another that the index {self.factory!r} holds them centred, which a "
                "file cannot tell; subtract their mean and use metric='euclidean'"
            )
        if index.metric_type != FAISS_METRICS[self.metric]:
            raise UserError(
                f"faiss has {self.factory!r} for euclidean distances only, so a file would not tell that the metric is "
                "cosine; normalise the features and use metric='euclidean', or another index"
            )
        if centre is not None:
            transform = faiss.CenteringTransform(self.dimension)
            faiss.copy_array_to_vector(centre.astype(np.float32), transform.mean)
            transform.is_trained = True
            index = faiss.IndexPreTransform(transform, index)
        faiss.write_index(index, str(as_path(path)))

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def dimension(self) -> int:
        """D of the features."""
        return self.index.d

    def set_parameters(self, parameters: str) -> None:
        """Sets what trades recall for speed, as faiss names it: 'nprobe=32', 'efSearch=128'."""
        if not isinstance(parameters, str):
            raise UserError(f"search parameters are a text such as nprobe=32, not {short(parameters)}")
        try:
            faiss.ParameterSpace().set_index_parameters(self.index, parameters)  # a file keeps these
            if self.searcher is not self.index and not self._stay(self._plan()):
                faiss.GpuParameterSpace().set_index_parameters(self.searcher, parameters)
            check_search_length(self.index)
        except (RuntimeError, BadIndexError) as error:
            raise UserError(
                f"the index {self.factory!r} does not take the search parameters {parameters!r} ({reason(error)})"
            ) from error

    def visit_more_lists(self) -> None:
        """Visit 16 lists of an inverted file instead of faiss's one, which finds too little to be useful."""
        num_clusters = _num_clusters(self.index)
        if num_clusters:
            self.set_parameters(f"nprobe={min(16, num_clusters)}")

    def use(self, device: str) -> None:
        """Search on the CPU or on GPUs: each holds a copy, or a part where one cannot hold it all.

        What faiss cannot search there stays on the CPU, with a warning in the log.
        """
        self.devices = find_devices(device)
        if self.devices[0].type == "cpu":
            self.searcher, self.plan = self.index, GpuPlan()
            return
        if not hasattr(faiss, "GpuMultipleClonerOptions"):
            raise UserError(
                f"this faiss searches {self.factory!r} on the CPU only; install faiss-gpu or use device='cpu'"
            )
        self.plan = self._plan()
        if self._stay(self.plan):
            return
        options = faiss.GpuMultipleClonerOptions()
        options.shard, options.useFloat16 = self.plan.shard, self.plan.half_tables
        try:
            self.searcher = faiss.index_cpu_to_gpus_list(
                self.index, options, gpus=[device.index for device in self.devices]
            )
        except RuntimeError as error:
            raise UserError(
                f"faiss cannot search {self.factory!r} on GPUs ({reason(error)}); use device='cpu'"
            ) from error

    def _plan(self) -> GpuPlan:
        memory = [torch.cuda.mem_get_info(device) for device in self.devices]
        return plan_gpus(self.index, [free for free, _ in memory], [total for _, total in memory])

    def _stay(self, plan: GpuPlan) -> bool:
        """Whether the index is searched on the CPU, because of what the plan says."""
        if plan.refusal:
            self.searcher = self.index
            _LOGGER.warning("%s is searched on the CPU: %s", self.factory, plan.refusal)
        return bool(plan.refusal)

    def search(self, queries: np.ndarray, k: int, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest items the index finds for each query.

        Args:
            queries: (N, D) features.
            k: how many; more than faiss finds on GPUs are searched on the CPU, and a warning says so.
            progress: called as progress("searching", queries done, queries in all).

        Returns:
            (positions, distances): (N, k) int64, -1 where fewer were found, and (N, k) float32, infinite there; nearest
            first, ties by position.

        Raises:
            UserError: queries of another dimension, features that ``Embeddings`` refuses.
        """
        queries = as_features(queries)
        check_count("k", k, 1)
        if queries.shape[1] != self.dimension:
            raise UserError(f"the index has {self.dimension} dimensions, the queries {queries.shape[1]}; build it anew")
        searcher = self.searcher
        if searcher is not self.index and k > self.plan.most_neighbours:
            most = self.plan.most_neighbours
            _LOGGER.warning("%s is searched on the CPU: faiss finds at most %d nearest on GPUs", self.factory, most)
            searcher = self.index
        positions = np.empty((len(queries), k), dtype=np.int64)
        distances = np.empty((len(queries), k), dtype=np.float32)
        for start, stop in ranges(len(queries), QUERIES_AT_ONCE):
            try:
                found, near = searcher.search(_ready(queries[start:stop], self.space), k)
            except RuntimeError as error:  # a GPU's limits, for instance
                raise UserError(f"faiss finds no {k} nearest in {self.factory!r} ({reason(error)})") from error
            if near.min() < -1 or near.max() >= len(self):
                raise UserError(f"the index {self.factory!r} names items that it does not hold; build it anew")
            far = np.where(near < 0, np.float32(np.inf), self._distances(found))
            order = np.lexsort((near, far), axis=1)
            distances[start:stop] = np.take_along_axis(far, order, 1)
            positions[start:stop] = np.take_along_axis(near, order, 1)
            if progress is not None:
                progress("searching", stop, len(queries))
        return positions, distances

    def _distances(self, found: np.ndarray) -> np.ndarray:
        """Distances from faiss's own: inner products, or squared distances (Hamming distances of LSH)."""
        if self.metric == "euclidean" or self.space.centre is not None:
            return found
        # Of unit vectors, 1 - cosine is half the squared distance.
        return 1 - found if self.index.metric_type == faiss.METRIC_INNER_PRODUCT else found / 2


def _make(dimension: int, factory: str, metric: str) -> faiss.Index:
    """An empty index. Some kinds know euclidean distances only, which rank unit vectors as cosine does."""
    try:
        try:
            index = faiss.index_factory(dimension, factory, FAISS_METRICS[metric])
            # faiss searches this one by distances and reports them as similarities.
            euclidean_only = isinstance(_innermost(index), faiss.IndexHNSWPQ)
        except RuntimeError:
            euclidean_only = True
        return faiss.index_factory(dimension, factory, faiss.METRIC_L2) if euclidean_only else index
    except (RuntimeError, TypeError) as error:
        raise UserError(
            f"faiss makes no index of {dimension} dimensions from {factory!r} ({reason(error)}); "
            "try 'Flat', 'IVF1024,Flat', 'HNSW32' or 'IVF1024,SQ8'"
        ) from error


def is_factory(text: str, dimension: int, metric: str) -> bool:
    """Whether faiss makes an index from this string."""
    try:
        _make(dimension, text, metric)
    except UserError:
        return False
    return True


def _read(path: Path) -> faiss.Index:
    """An index file from elsewhere, once another process has read, checked and searched it."""
    if wrong := in_a_process(index_file.__file__, "read and searched", path):
        raise UserError(f"{path} {wrong}; give a file that RetrievalIndex.save wrote, or build the index anew")
    try:
        index = read_limited(path)
        precompute(index)
    except (RuntimeError, MemoryError) as error:  # it has changed meanwhile
        raise UserError(f"{path} is not a faiss index ({reason(error)[:160]})") from error
    return index


def _ready(features: np.ndarray, space: Space) -> np.ndarray:
    """Features as the index compares them: float32, of unit length for cosine, centred."""
    return space.prepare(features, CPU).values.numpy()


def _without_centring(index: faiss.Index, path: Path) -> tuple[faiss.Index, np.ndarray | None]:
    """An index that ``save`` put behind a centring, which is done in float64 here, and the centre."""
    if not isinstance(index, faiss.IndexPreTransform) or index.chain.size() != 1:
        return index, None
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    if not isinstance(transform, faiss.CenteringTransform):
        return index, None
    centre = faiss.vector_to_array(transform.mean).astype(np.float64)
    if centre.shape != (index.d,) or not np.isfinite(centre).all():
        raise UserError(f"{path} holds a centre that is no vector of {index.d} numbers; build the index anew")
    return faiss.downcast_index(index.index), centre


def _num_clusters(index: faiss.Index) -> int:
    """Clusters of an inverted-file index, 0 for others."""
    inner = _innermost(index)
    return inner.nlist if isinstance(inner, faiss.IndexIVF) else 0


def _innermost(index: faiss.Index) -> faiss.Index:
    """The index that holds the vectors, out of its transforms, maps and refinements."""
    inner = faiss.downcast_index(index)
    while isinstance(inner, faiss.IndexPreTransform | faiss.IndexIDMap | faiss.IndexRefine):
        inner = faiss.downcast_index(inner.base_index if isinstance(inner, faiss.IndexRefine) else inner.index)
    return inner


def _training_sample(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Enough vectors to train on: all, or a random choice of them."""
    size = max(TRAINING_VECTORS, TRAINING_PER_CLUSTER * num_clusters)
    if len(features) <= size:
        return np.asarray(features)
    chosen = np.random.default_rng(seed).choice(len(features), size, replace=False)
    return features[np.sort(chosen)]
