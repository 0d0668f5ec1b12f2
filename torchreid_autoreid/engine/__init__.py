"""Engines for torchreid: the search, the training, and any image engine with the faiss evaluation."""

from .evaluation import FaissEvaluationMixin, with_faiss_evaluation
from .random_search import ImageRandomSearchEngine
from .search import ImageAutoReIDSearchEngine
from .training import ImageSoftmaxTrainingEngine, ImageTripletTrainingEngine, Recipe, build_scheduler

__all__ = [
    "FaissEvaluationMixin",
    "ImageAutoReIDSearchEngine",
    "ImageRandomSearchEngine",
    "ImageSoftmaxTrainingEngine",
    "ImageTripletTrainingEngine",
    "Recipe",
    "build_scheduler",
    "with_faiss_evaluation",
]
