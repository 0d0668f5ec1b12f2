"""Retrieval evaluation at any size: exact, sparse, on faiss. It knows no torchreid and no networks."""

from .approximate import NeighbourIndex
from .clusters import Agreement, cluster, compare_clusters
from .definitions import Figure, figures_by_definition
from .embeddings import Embeddings, load_embeddings, save_embeddings
from .index import RetrievalIndex
from .metrics import RocCurve, evaluate_rank
from .rerank import k_reciprocal_distances, re_ranking
from .result import RetrievalResult
from .retrieval import evaluate, roc

__all__ = [
    "Agreement",
    "Embeddings",
    "Figure",
    "NeighbourIndex",
    "RetrievalIndex",
    "RetrievalResult",
    "RocCurve",
    "cluster",
    "compare_clusters",
    "evaluate",
    "evaluate_rank",
    "figures_by_definition",
    "k_reciprocal_distances",
    "load_embeddings",
    "re_ranking",
    "roc",
    "save_embeddings",
]
