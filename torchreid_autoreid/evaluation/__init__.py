"""Retrieval evaluation at any size: exact, sparse, on faiss. It knows no torchreid and no networks."""

from .embeddings import Embeddings, load_embeddings, save_embeddings
from .metrics import RocCurve, evaluate_rank
from .result import RetrievalResult
from .retrieval import evaluate

__all__ = [
    "Embeddings",
    "RetrievalResult",
    "RocCurve",
    "evaluate",
    "evaluate_rank",
    "load_embeddings",
    "save_embeddings",
]
