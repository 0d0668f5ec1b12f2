"""Retrieval evaluation at any size: exact, sparse, on faiss. It knows no torchreid and no networks."""

from .embeddings import Embeddings, load_embeddings, save_embeddings
from .result import RetrievalResult
from .retrieval import evaluate

__all__ = ["Embeddings", "RetrievalResult", "evaluate", "load_embeddings", "save_embeddings"]
