"""The configuration: its keys, reading, checks, and the arguments that it stands for."""

from .build import (
    budget_limits,
    engine_run_kwargs,
    imagedata_kwargs,
    lr_scheduler_kwargs,
    network_kwargs,
    optimizer_kwargs,
    schedule_kwargs,
    scheduler_kwargs,
    search_kwargs,
    searchdata_kwargs,
    settings_of_result,
    shape_kwargs,
    traindata_kwargs,
)
from .check import check_search_config, check_train_config
from .keys import get_default_config
from .read import load_config, plain_yaml

__all__ = [
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
    "schedule_kwargs",
    "scheduler_kwargs",
    "search_kwargs",
    "searchdata_kwargs",
    "settings_of_result",
    "shape_kwargs",
    "traindata_kwargs",
]
