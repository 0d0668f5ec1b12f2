"""Data: the two halves a search trains on, a user's own folder, and pedestrians that the plugin draws itself."""

from .datasets import FolderDataset, dataset_names, register_datasets
from .images import read_image, use_in_feature_extractor
from .loader import SearchLoader
from .manager import ReidDataManager, SearchDataManager, TrainDataManager
from .pedestrians import SyntheticPedestrians

__all__ = [
    "FolderDataset",
    "ReidDataManager",
    "SearchDataManager",
    "SearchLoader",
    "SyntheticPedestrians",
    "TrainDataManager",
    "dataset_names",
    "read_image",
    "register_datasets",
    "use_in_feature_extractor",
]

register_datasets()
use_in_feature_extractor()
