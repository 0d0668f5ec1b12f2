"""The table of who reads each key; the defaults and their meaning are in ``keys.py``.

What a value may be is in ``limits.py`` of the package; what several keys decide together is in ``check.py``.
"""

from __future__ import annotations

from .keys import get_default_config
from .read import all_keys

__all__ = [
    "BY_THE_RECIPE",
    "DIFFERENTIABLE",
    "FREE_ON_RESUME",
    "MIXED",
    "OF_CANDIDATES",
    "READ_ABOVE_ZERO",
    "READ_WITH",
    "UNUSED_IN_SEARCH",
    "UNUSED_IN_TRAINING",
]

#: Beginnings of keys that may change when a run resumes: what it ends with does not depend on them, or, for the weights
#: to start from, no longer does.
FREE_ON_RESUME = (
    "use_gpu",
    "data.root",
    "data.save_dir",
    "data.targets",
    "data.workers",
    "model.load_weights",
    "model.pretrained",
    "autoreid.pretrained",
    "recipe.keep_last",
    "search.checkpoint_every",
    "search.study",
    "train.print_freq",
    "test.",
)

#: Keys of torchreid that a search has no use for, and what to use instead.
UNUSED_IN_SEARCH = {
    "model.name": "it builds the search network",
    "model.pretrained": "it starts from random weights",
    "model.load_weights": "use --resume",
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "it trains on data.sources only",
    "data.k_tfm": "it draws one augmentation of an image",
    "market1501.use_500k_distractors": "it retrieves in the held-out half of the training set; use evaluate.py",
    "cuhk03.use_metric_cuhk03": "it retrieves in the held-out half by the protocol of Market-1501; use evaluate.py",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "sampler.num_cams": "it samples by identity",
    "sampler.num_datasets": "it samples by identity",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "train.fixbase_epoch": "use search.warmup_epochs to freeze the alphas",
    "train.open_layers": "it trains all weights",
    "train.staged_lr": "all weights have one learning rate, train.lr",
    "train.new_layers": "all weights have one learning rate, train.lr",
    "train.base_lr_mult": "all weights have one learning rate, train.lr",
    "loss.name": "it uses the retrieval loss",
    "loss.triplet.weight_t": "use search.loss_lambda",
    "loss.triplet.weight_x": "use search.loss_lambda",
    "test.evaluate": "use evaluate.py",
    "test.start_eval": "use test.eval_freq",
    "test.ranks": "its log has ranks 1, 5 and 10",
    "test.rerank": "use evaluate.py",
    "test.visrank": "use evaluate.py",
    "test.visrank_topk": "use evaluate.py",
    "autoreid.genotype": "it finds one; train.py takes one",
    "autoreid.drop_path": "train.py takes it",
    "autoreid.last_stride": "train.py takes it",
    "autoreid.auxiliary_weight": "train.py takes it",
    "autoreid.pretrained": "it starts from random weights",
    **{f"recipe.{key}": "train.py takes it" for key in get_default_config().recipe},
}


#: Keys that a training has no use for.
UNUSED_IN_TRAINING = {
    "model.resume": "use --resume",
    "data.type": "it is for images",
    "data.load_train_targets": "torchreid's engines for images train on data.sources only",
    "data.k_tfm": "torchreid's engines for images take one augmentation of an image",
    "sampler.train_sampler_t": "it trains on data.sources only",
    "video.seq_len": "it is for images",
    "video.sample_method": "it is for images",
    "video.pooling_method": "it is for images",
    "train.start_epoch": "use --resume",
    "autoreid.blocks": "a genotype brings its own",
    **dict.fromkeys(all_keys(get_default_config().search, "search."), "search.py takes it"),
}


# Strategies that mix all operations of an edge; those that have alphas at all.
MIXED = ("darts", "pc_darts", "drnas")


DIFFERENTIABLE = (*MIXED, "gdas")


# Those that train derived networks, by a recipe of their own.
OF_CANDIDATES = ("random", "predictor", "halving", "evolution")


# Those of one rung: as many candidates as the epochs of the search allow.
OF_ONE_RUNG = ("random", "predictor")


#: Beginnings of keys that candidates take from search.recipe.
BY_THE_RECIPE = (
    "train.optim",
    "train.lr",
    "train.weight_decay",
    "train.stepsize",
    "train.gamma",
    "sgd.",
    "adam.",
    "rmsprop.",
    "loss.",
    "test.dist_metric",
    "test.normalize_feature",
)


#: Keys that only some values of another key read.
READ_WITH = {
    # gdas executes one operation an edge, so it has no mixture to add a skip connection to, or to take apart; and its
    # gradient, straight through a choice, is that of no loss, so it has no second order.
    "search.order": ("search.strategy", MIXED),
    "search.auxiliary_skip": ("search.strategy", MIXED),
    # drnas has a regulariser of its own, and its alphas go through no softmax.
    "search.beta_weight": ("search.strategy", ("darts", "pc_darts", "gdas")),
    **{
        f"search.{key}": ("search.strategy", DIFFERENTIABLE)
        for key in (
            "activation_checkpointing",
            "skip_dropout",
            "stop_at_skips",
            "alpha_loss",
            "alpha_lr",
            "alpha_betas",
            "alpha_weight_decay",
            "warmup_epochs",
            "real_alpha_every",
            "split",
            "alpha_fraction",
            "loss_lambda",
            "min_lr",
            "grad_clip",
        )
    },
    "search.tau_start": ("search.strategy", ("gdas",)),
    "search.tau_end": ("search.strategy", ("gdas",)),
    "search.partial_channels": ("search.strategy", ("pc_darts",)),
    "search.dirichlet_weight": ("search.strategy", ("drnas",)),
    "search.candidate_epochs": ("search.strategy", (*OF_ONE_RUNG, "evolution")),
    "search.second_objective": ("search.strategy", OF_CANDIDATES),
    "search.study": ("search.strategy", OF_CANDIDATES),
    "search.predictor_draws": ("search.strategy", ("predictor",)),
    "search.evolution_candidates": ("search.strategy", ("evolution",)),
    "search.population": ("search.strategy", ("evolution",)),
    "search.tournament": ("search.strategy", ("evolution",)),
    "search.perturbation_batches": ("search.selection", ("perturbation",)),
    "search.perturbation_steps": ("search.selection", ("perturbation",)),
    "sgd.momentum": ("train.optim", ("sgd", "rmsprop")),
    "sgd.dampening": ("train.optim", ("sgd",)),
    "sgd.nesterov": ("train.optim", ("sgd",)),
    "rmsprop.alpha": ("train.optim", ("rmsprop",)),
    "adam.beta1": ("train.optim", ("adam", "amsgrad", "radam")),
    "adam.beta2": ("train.optim", ("adam", "amsgrad", "radam")),
    "train.stepsize": ("train.lr_scheduler", ("single_step", "multi_step")),
    "train.gamma": ("train.lr_scheduler", ("single_step", "multi_step")),
    "search.min_lr": ("train.lr_scheduler", ("cosine",)),
    "recipe.min_lr": ("train.lr_scheduler", ("cosine",)),
    "train.new_layers": ("train.staged_lr", (True,)),
    "train.base_lr_mult": ("train.staged_lr", (True,)),
    "test.visrank_topk": ("test.visrank", (True,)),
    "sampler.num_cams": ("sampler.train_sampler", ("RandomDomainSampler",)),
    "sampler.num_datasets": ("sampler.train_sampler", ("RandomDatasetSampler",)),
    "loss.triplet.weight_t": ("loss.name", ("triplet",)),
    "loss.triplet.weight_x": ("loss.name", ("triplet",)),
    "autoreid.pretrained": ("model.pretrained", (True,)),
}


#: Keys that nothing reads where another key is 0.
READ_ABOVE_ZERO = {
    "recipe.warmup_factor": "recipe.warmup_epochs",
    "train.open_layers": "train.fixbase_epoch",
}
