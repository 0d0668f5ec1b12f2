"""Engines for torchreid: the search, the training, and any image engine with the faiss evaluation."""

from .candidates import Annealing, ImageCandidateSearchEngine
from .evaluation import FaissEvaluationMixin, with_faiss_evaluation
from .search import ImageAutoReIDSearchEngine
from .training import ImageSoftmaxTrainingEngine, ImageTripletTrainingEngine, Recipe, build_scheduler

__all__ = [
    "Annealing",
    "FaissEvaluationMixin",
    "ImageAutoReIDSearchEngine",
    "ImageCandidateSearchEngine",
    "ImageSoftmaxTrainingEngine",
    "ImageTripletTrainingEngine",
    "Recipe",
    "build_scheduler",
    "with_faiss_evaluation",
]
