"""Engines for torchreid: the search, and any image engine with the faiss evaluation."""

from .evaluation import FaissEvaluationMixin, with_faiss_evaluation
from .search import ImageAutoReIDSearchEngine

__all__ = ["FaissEvaluationMixin", "ImageAutoReIDSearchEngine", "with_faiss_evaluation"]
