"""The configuration: its keys, reading, checks, and the arguments that it stands for."""

from .build import (
    arguments_of,
    budget_limits,
    engine_run_kwargs,
    imagedata_kwargs,
    lr_scheduler_kwargs,
    network_kwargs,
    optimizer_kwargs,
    scheduler_kwargs,
    searchdata_kwargs,
    settings_of_result,
    shape_kwargs,
    traindata_kwargs,
)
from .check import check_search_config, check_train_config
from .read import get_default_config, load_config, plain_yaml

__all__ = [
    "arguments_of",
    "budget_limits",
    "check_search_config",
    "check_train_config",
    "engine_run_kwargs",
    "get_default_config",
    "imagedata_kwargs",
    "load_config",
    "lr_scheduler_kwargs",
    "network_kwargs",
    "optimizer_kwargs",
    "plain_yaml",
    "scheduler_kwargs",
    "searchdata_kwargs",
    "settings_of_result",
    "shape_kwargs",
    "traindata_kwargs",
]
