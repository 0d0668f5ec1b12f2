"""Engines for torchreid: the search, the training, and any image engine with the faiss evaluation."""

from .evaluation import FaissEvaluationMixin, with_faiss_evaluation
from .search import ImageAutoReIDSearchEngine
from .training import ImageSoftmaxTrainingEngine, ImageTripletTrainingEngine, Recipe, build_scheduler

__all__ = [
    "FaissEvaluationMixin",
    "ImageAutoReIDSearchEngine",
    "ImageSoftmaxTrainingEngine",
    "ImageTripletTrainingEngine",
    "Recipe",
    "build_scheduler",
    "with_faiss_evaluation",
]
