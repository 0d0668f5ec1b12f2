"""The full yacs tree: every key of torchreid with its meaning and default, plus ``autoreid`` and ``search``.

torchreid keeps its tree in a script (``scripts/default_config.py``), not in its package; a test compares ours with that
script and with the signatures of the callables that the keys end up in.
"""

from yacs.config import CfgNode

__all__ = ["get_default_config"]


def get_default_config() -> CfgNode:
    """A fresh tree with all defaults."""
    cfg = CfgNode()
    cfg.use_gpu = True  # where there is one

    # model
    cfg.model = CfgNode()
    cfg.model.name = "resnet50"
    cfg.model.pretrained = True  # load ImageNet weights if available
    cfg.model.load_weights = ""  # path to model weights
    cfg.model.resume = ""  # path to a checkpoint to resume training from

    # data
    cfg.data = CfgNode()
    cfg.data.type = "image"
    cfg.data.root = "reid-data"
    cfg.data.sources = ["market1501"]
    cfg.data.targets = ["market1501"]
    cfg.data.workers = 4  # loader processes
    cfg.data.split_id = 0
    cfg.data.height = 256  # pixels
    cfg.data.width = 128
    cfg.data.combineall = False  # train on train, query and gallery
    cfg.data.transforms = ["random_flip"]
    cfg.data.k_tfm = 1  # augmentations of an image in a batch
    cfg.data.norm_mean = [0.485, 0.456, 0.406]  # ImageNet
    cfg.data.norm_std = [0.229, 0.224, 0.225]
    cfg.data.save_dir = "log"  # log folder
    cfg.data.load_train_targets = False

    # datasets
    cfg.market1501 = CfgNode()
    cfg.market1501.use_500k_distractors = False
    cfg.cuhk03 = CfgNode()
    cfg.cuhk03.labeled_images = False  # hand-labelled boxes; else detected ones
    cfg.cuhk03.classic_split = False
    cfg.cuhk03.use_metric_cuhk03 = False  # single-gallery-shot

    # sampler
    cfg.sampler = CfgNode()
    cfg.sampler.train_sampler = "RandomSampler"
    cfg.sampler.train_sampler_t = "RandomSampler"
    cfg.sampler.num_instances = 4  # K images an identity, for RandomIdentitySampler
    cfg.sampler.num_cams = 1  # for RandomDomainSampler
    cfg.sampler.num_datasets = 1  # for RandomDatasetSampler

    # video
    cfg.video = CfgNode()
    cfg.video.seq_len = 15
    cfg.video.sample_method = "evenly"
    cfg.video.pooling_method = "avg"

    # train
    cfg.train = CfgNode()
    cfg.train.optim = "adam"
    cfg.train.lr = 0.0003
    cfg.train.weight_decay = 5e-4
    cfg.train.max_epoch = 60  # in search.py: of the search
    cfg.train.start_epoch = 0
    cfg.train.batch_size = 32  # images of a step; under torchrun of all processes together
    cfg.train.fixbase_epoch = 0  # epochs that train open_layers only
    cfg.train.open_layers = ["classifier"]
    cfg.train.staged_lr = False
    cfg.train.new_layers = ["classifier"]
    cfg.train.base_lr_mult = 0.1
    cfg.train.lr_scheduler = "single_step"
    cfg.train.stepsize = [20]  # epochs
    cfg.train.gamma = 0.1
    cfg.train.print_freq = 20  # batches
    cfg.train.seed = 1

    # optimisers
    cfg.sgd = CfgNode()
    cfg.sgd.momentum = 0.9  # of sgd and rmsprop
    cfg.sgd.dampening = 0.0
    cfg.sgd.nesterov = False
    cfg.rmsprop = CfgNode()
    cfg.rmsprop.alpha = 0.99
    cfg.adam = CfgNode()
    cfg.adam.beta1 = 0.9
    cfg.adam.beta2 = 0.999

    # loss
    cfg.loss = CfgNode()
    cfg.loss.name = "softmax"
    cfg.loss.softmax = CfgNode()
    cfg.loss.softmax.label_smooth = True
    cfg.loss.triplet = CfgNode()
    cfg.loss.triplet.margin = 0.3  # in units of the feature distance (in a search: open; the field's usual value)
    cfg.loss.triplet.weight_t = 1.0
    cfg.loss.triplet.weight_x = 0.0

    # test
    cfg.test = CfgNode()
    cfg.test.batch_size = 100
    cfg.test.dist_metric = "euclidean"  # or cosine
    cfg.test.normalize_feature = False
    cfg.test.ranks = [1, 5, 10, 20]
    cfg.test.evaluate = False  # test only
    cfg.test.eval_freq = -1  # epochs between tests; -1: after training only. In search.py: tests of the held-out half
    cfg.test.start_eval = 0
    cfg.test.rerank = False
    cfg.test.visrank = False
    cfg.test.visrank_topk = 10

    # ours: the network
    cfg.autoreid = CfgNode()
    cfg.autoreid.genotype = "retrieval"  # preset name or path of a JSON file
    cfg.autoreid.channels = 64  # C of the first stage; doubles with every stage
    cfg.autoreid.layers = [2, 2, 2, 2]  # L, cells in each of the four stages
    cfg.autoreid.blocks = 4  # B, blocks of a cell, in a search; a genotype brings its own
    cfg.autoreid.parts = 4  # M, stripes of the part-aware operation
    cfg.autoreid.drop_path = 0.0  # probability, of the derived network in training
    cfg.autoreid.last_stride = 2  # of the fourth stage of the derived network; 1: "Bag of Tricks" (CVPRW 2019)
    cfg.autoreid.last_norm = True  # batch norm and ReLU before the pooling; false: the paper's form
    cfg.autoreid.auxiliary_weight = 0.0  # of an auxiliary classifier on the third stage in training; 0: none
    cfg.autoreid.pretrained = ""  # file with ImageNet weights of the derived network, for model.pretrained

    # ours: how train.py trains, beyond torchreid's keys
    cfg.recipe = CfgNode()
    cfg.recipe.warmup_epochs = 0  # in which the learning rate rises linearly
    cfg.recipe.warmup_factor = 0.1  # share of the learning rate to begin with
    cfg.recipe.min_lr = 0.0  # where the cosine of train.lr ends
    cfg.recipe.grad_clip = 0.0  # largest norm of the gradient; 0: off
    cfg.recipe.neck = "none"  # batch-norm neck; the feature of testing is taken ``before`` or ``after`` it
    cfg.recipe.ema_decay = 0.0  # of a moving average of the weights, which is what is tested and saved; 0: off
    cfg.recipe.amp = "none"  # mixed precision: none, bfloat16 or float16 (on a GPU)
    cfg.recipe.sync_batch_norm = True  # under torchrun: statistics of the batches of all processes
    cfg.recipe.flip_test = False  # the feature of testing is the mean over an image and its mirror image
    cfg.recipe.held_out = 0.0  # share of training identities kept for choosing the best epoch; 0: the targets choose
    cfg.recipe.keep_last = 1  # 1: latest, the one before, and the best; N: the newest N by number too; 0: best only

    # ours: the search (Auto-ReID, section 3; "open": not published, so the default is our choice)
    cfg.search = CfgNode()
    # How alphas weigh the operations of an edge: darts (ICLR 2019), gdas (CVPR 2019), pc_darts (ICLR 2020), drnas (ICLR
    # 2021); space/strategies.py says more of each. Or what trains derived networks and learns no alphas: random draws
    # genotypes, trains each and keeps the best (Li and Talwalkar, UAI 2019), predictor lets what all of them say of an
    # operation choose the next one and the answer (search/predictor.py), halving trains many for a moment and the
    # better ones for longer (Jamieson and Talwalkar, AISTATS 2016), evolution mutates the better ones of a population
    # and lets the best go through halving (Real et al., AAAI 2019). random is the default, because it found the best
    # networks in the README's comparison. The recipes in configs/ say darts, which is Auto-ReID's own.
    cfg.search.strategy = "random"
    cfg.search.order = 1  # of the alphas' gradient: 1 or 2 (DARTS, section 2.3); the paper's tables do not say (open)
    cfg.search.space = "reid"  # reid: the paper's seven operations; standard: without part_aware, the paper's ablation
    cfg.search.split = "image"  # image: every identity in both halves (published); identity: in one (MSINet, CVPR 2023)
    cfg.search.alpha_fraction = 0.5  # share of the training set that trains the alphas
    # What the alphas minimise: scale_free, the retrieval loss on features and logits of a fixed scale, so that no
    # operation wins by changing it; or published, the paper's loss as it is.
    cfg.search.alpha_loss = "scale_free"
    cfg.search.alpha_lr = 0.0  # of Adam, constant (Auto-ReID: 0.02); 0: the strategy's own, more if the search is short
    cfg.search.alpha_betas = [0.5, 0.0]  # of Adam; a second of 0: 0.999, less if the search is short
    cfg.search.alpha_weight_decay = 5e-5  # of Adam
    cfg.search.min_lr = 0.001  # where the cosine of train.lr ends
    cfg.search.grad_clip = 5.0  # largest norm of the gradient of w; 0: off (open; DARTS's value)
    cfg.search.warmup_epochs = -1  # epochs with the alphas frozen; -1: 30 % of them (PC-DARTS, section 4.2; open)
    cfg.search.real_alpha_every = 1  # epochs from one use of the alpha half to the next; the w half stands in between
    cfg.search.loss_lambda = 0.5  # share of the cross-entropy in the retrieval loss, 0 to 1 (open)
    cfg.search.derive_renormalised = False  # edge strengths without the mass of ``none``; published: with it
    cfg.search.amp = "none"  # mixed precision: none, bfloat16 or float16 (on a GPU)
    cfg.search.grad_sync = "mean"  # under torchrun: mean or sum of the gradients of all processes
    cfg.search.sync_batch_norm = True  # under torchrun: statistics of the batches of all processes
    cfg.search.checkpoint_every = 0  # epochs between checkpoints that are kept; 0: latest and best only
    cfg.search.activation_checkpointing = False  # a cell at a time in memory, for one more forward pass in time
    # of one strategy
    cfg.search.tau_start = 10.0  # of gdas: temperature at the first epoch (GDAS, section 4.1), from there linearly to
    cfg.search.tau_end = 0.1  # of gdas: temperature at the last epoch
    cfg.search.partial_channels = 4  # of pc_darts: K, of which 1/K of the channels is searched (PC-DARTS, section 3.2)
    cfg.search.dirichlet_weight = 0.001  # of drnas: of its regulariser in the loss of the alphas (DrNAS, section 2)
    # of random, predictor, halving and evolution, which train derived networks
    cfg.search.recipe = "autoreid_train.yaml"  # the training whose optimiser, rate, loss, neck and drop path they have
    cfg.search.held_out = 0.25  # share of the training identities that they are ranked on, and never trained on
    # A second objective: none, or params, macs or latency_ms of the network that search.budget describes. What goes on
    # is then the candidates that no other one beats in both, and pareto.json has those of the end.
    cfg.search.second_objective = "none"
    cfg.search.candidate_epochs = (
        1  # of random, predictor and evolution: for each genotype; train.max_epoch is that of all
    )
    cfg.search.rung_candidates = [27, 9, 3]  # of halving: networks in each rung; the better ones go on (Jamieson and
    cfg.search.rung_epochs = [1, 3, 9]  # Talwalkar, AISTATS 2016), and epochs for which each is trained at its end
    # An Optuna study, a file or a URL (sqlite:///…, mysql://…), on which all who are started with it work; "": none.
    cfg.search.study = ""
    cfg.search.predictor_draws = 12  # of predictor: candidates that are drawn blindly before it chooses the others
    cfg.search.evolution_candidates = 100  # of evolution: children and first draws in all, before the rungs
    cfg.search.population = 16  # of evolution: how many live at a time; the oldest one dies (Real et al., section 3.1)
    cfg.search.tournament = 10  # of evolution: how many of them are drawn for a parent, the best of them
    # against collapse; they combine, and 0 switches them off
    cfg.search.auxiliary_skip = 0.0  # beta of the auxiliary skip connection, from 1 linearly to 0 in DARTS− (section 3)
    cfg.search.beta_weight = 0.0  # of logsumexp(alpha) in the loss, from 0 linearly to, in β-DARTS (section 3), 50
    cfg.search.skip_dropout = 0.0  # after skip connections, decaying linearly to 0 (P-DARTS, section 3.3)
    cfg.search.skip_cap = -1  # skip connections that a derived normal cell keeps, 2 in P-DARTS (section 3.3); -1: any
    cfg.search.stop_at_skips = 0  # as many in the normal cell end the search, 2 in DARTS+ (2019, section 3.2)
    # the genotype at the end
    # By the strength of the alphas; perturbation: by what is missed most (DARTS-PT, ICLR 2021); halving: the derived
    # genotype, draws from the alphas and a third blind draws are trained in the rungs of halving, and the best is kept.
    cfg.search.selection = "strength"
    cfg.search.perturbation_batches = 4  # of the alpha half, on which the loss without an operation is measured
    cfg.search.perturbation_steps = 10  # of the weights after each choice

    # ours: the largest network that a search may derive, without its classifier; 0: no limit
    cfg.search.budget = CfgNode()
    cfg.search.budget.params = 0.0  # parameters, in numbers: 5.0e+6
    cfg.search.budget.macs = 0.0  # multiply-adds an image, in numbers: 1.2e+9
    cfg.search.budget.latency_ms = 0.0  # milliseconds an image, on this machine (the GPU if it is used)
    cfg.search.budget.latency_table = ""  # latency.json of an earlier search; empty: measure
    # The network that the limits hold for: the one to be trained, which is wider than the search network.
    cfg.search.budget.channels = 64
    cfg.search.budget.layers = [2, 2, 2, 2]
    cfg.search.budget.height = 0  # of its input; 0: data.height
    cfg.search.budget.width = 0  # 0: data.width
    cfg.search.budget.last_stride = 2
    return cfg
