"""Architecture search for person re-identification, and retrieval evaluation at any size, as a torchreid plugin.

Importing the package registers its models and datasets with torchreid.
"""

# ruff: noqa: E402
import warnings

# torchreid says on import that it has no compiled evaluation; the plugin brings its own.
warnings.filterwarnings("ignore", "Cython evaluation")

from . import data, plugin
from .errors import UserError
from .genotype import Genotype
from .plugin import register_model
from .version import __version__

__all__ = ["Genotype", "UserError", "__version__", "register_model"]

plugin.register()
data.register_datasets()
data.use_in_feature_extractor()
