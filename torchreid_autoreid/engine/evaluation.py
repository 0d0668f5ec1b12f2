"""torchreid's engines with retrieval evaluation in bounded memory, at any size."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from ..data.loader import InOrderLoader
from ..deploy.fusion import fuse
from ..errors import IndistinctError, UserError
from ..evaluation import Embeddings, RetrievalResult, evaluate
from ..evaluation.pairwise import Progress
from ..parallel.group import group
from ..parallel.launch import OneProcess, processes
from .ranked import draw_ranked_results

__all__ = ["FaissEvaluationMixin", "tell", "with_faiss_evaluation"]

_LOGGER = logging.getLogger(__name__)


class FaissEvaluationMixin:
    """Replaces the evaluation of a torchreid image engine: same figures, no dense matrix, no sort.

    Put it before the engine, ``class MyEngine(FaissEvaluationMixin, torchreid.engine.ImageTripletEngine)``, or give it
    to an engine that exists with :func:`with_faiss_evaluation`.

    Attributes:
        distributed: share the work among all processes of ``torch.distributed``: each extracts its part of the query
            and extracts and holds its part of the gallery. Every process must take part in every evaluation.
        flip_test: the feature of an image is the mean over it and its mirror image.
        results: the full result of the last evaluation of each target, by name.
    """

    model: Any  # torchreid's own
    distributed = False
    flip_test = False
    results: dict[str, RetrievalResult]

    @torch.no_grad()
    def extract_embeddings(
        self,
        loader: Iterable[Any],
        normalize_feature: bool = False,
        progress: Progress | None = None,
        name: str = "images",
    ) -> Embeddings:
        """Features of all images of a loader, by the model in eval mode; its modes are restored.

        Args:
            loader: yields torchreid's batches.
            normalize_feature: divide each vector by its length.
            progress: called as progress(name, batches done, batches in all).
            name: of the images.
        """
        model = self.model
        device = _device_of(model)
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        self.model = fuse(model)  # the same features, sooner
        parts: tuple[list[torch.Tensor], list[Any], list[Any]] = ([], [], [])
        try:
            for number, data in enumerate(loader, start=1):
                images, pids, camids = self.parse_data_for_eval(data)  # type: ignore[attr-defined]
                features = self._features_of(images.to(device, non_blocking=True))
                features = F.normalize(features.float(), dim=1) if normalize_feature else features.float()
                for part, values in zip(parts, (features.cpu(), pids, camids), strict=True):
                    part.append(values)
                if progress is not None:
                    progress(name, number, len(loader))  # type: ignore[arg-type]
        finally:
            self.model = model
            for module, training in modes:
                module.training = training
        if not parts[0]:
            raise UserError("there are no images to evaluate; check the dataset's query and gallery")
        features, pids, camids = (torch.cat([torch.as_tensor(value) for value in part]) for part in parts)
        return Embeddings(features.numpy(), pids.numpy(), camids.numpy())

    def _features_of(self, images: torch.Tensor) -> torch.Tensor:
        features = self.extract_features(images)  # type: ignore[attr-defined]
        if self.flip_test:
            features = (features.float() + self.extract_features(images.flip(3)).float()) / 2  # type: ignore[attr-defined]
        return features

    def extract_test_set(
        self,
        query_loader: Any,
        gallery_loader: Any,
        normalize_feature: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Embeddings, Embeddings]:
        """Embeddings of a query and a gallery; if ``distributed``, the gallery's are this process's part.

        Images that are all by one camera have no camera labels in the result: a protocol that leaves out what the
        query's own camera has seen would leave nothing.

        Raises:
            UserError: if a part is empty, or a gallery has fewer images than there are processes.
        """
        world = processes(self.distributed)
        query_alone = len(query_loader.dataset) < world.size  # too few to share: every process extracts them all
        loaders = (
            query_loader if query_alone else share_of_loader(query_loader, world),
            share_of_loader(gallery_loader, world),
        )
        with group(self.distributed).together(UserError):  # an image that one process cannot read
            query, gallery = (
                self.extract_embeddings(loader, normalize_feature, progress, name)
                for name, loader in zip(("query", "gallery"), loaders, strict=True)
            )
        if not query_alone:
            query = Embeddings(*(world.concatenate(part) for part in (query.features, query.pids, query.camids)))
        seen = np.concatenate([query.camids, gallery.camids])
        ends = world.concatenate(np.array([seen.min(), seen.max()]))
        if ends.min() < ends.max():
            return query, gallery
        return Embeddings(query.features, query.pids), Embeddings(gallery.features, gallery.pids)

    def retrieve(
        self,
        query_loader: Any,
        gallery_loader: Any,
        dist_metric: str = "euclidean",
        normalize_feature: bool = False,
        rerank: bool = False,
        use_metric_cuhk03: bool = False,
        max_rank: int = 50,
        topk: int = 0,
        alike_is_chance: bool = False,
    ) -> RetrievalResult:
        """Evaluates retrieval of one loader's images among another's; the options are torchreid's.

        Args:
            max_rank: length of the CMC curve.
            topk: how many nearest gallery positions a query to return in the result.
            alike_is_chance: features that distances do not tell apart are taken for equal ones, with a warning.

        Raises:
            IndistinctError: if they are not taken for that.
        """
        query, gallery = self.extract_test_set(query_loader, gallery_loader, normalize_feature)
        measured = partial(
            evaluate,
            metric=dist_metric,
            rerank=rerank,
            use_metric_cuhk03=use_metric_cuhk03,
            max_rank=max_rank,
            topk=topk,
            device=str(_device_of(self.model)),
            distributed=self.distributed,
        )
        try:
            return measured(query, gallery)
        except IndistinctError:
            if not alike_is_chance:
                raise
            _LOGGER.warning("the network answers nearly the same for all images; it is measured as if it did so")
            equal = (replace(part, features=np.ones_like(part.features)) for part in (query, gallery))
            return measured(*equal)

    def _evaluate(
        self,
        dataset_name: str = "",
        query_loader: Any = None,
        gallery_loader: Any = None,
        dist_metric: str = "euclidean",
        normalize_feature: bool = False,
        visrank: bool = False,
        visrank_topk: int = 10,
        save_dir: str = "",
        use_metric_cuhk03: bool = False,
        ranks: Sequence[int] = (1, 5, 10, 20),
        rerank: bool = False,
    ) -> tuple[float, float]:
        """torchreid's hook; returns ``(rank-1, mAP)``."""
        started = time.monotonic()
        result = self.retrieve(
            query_loader,
            gallery_loader,
            dist_metric,
            normalize_feature,
            rerank,
            use_metric_cuhk03,
            max_rank=max([50, *ranks]),
            topk=visrank_topk if visrank else 0,
        )
        self.results = {**getattr(self, "results", {}), dataset_name: result}
        lines = [
            f"** Results{f' on {dataset_name}' if dataset_name else ''} "
            f"({dist_metric}{', re-ranked' if rerank else ''}, {time.monotonic() - started:.1f} s) **",
            *(f"{label}: {value:.1%}" for label, value in result.shown().items()),
            "CMC curve",
            *(f"Rank-{rank:<3}: {result.rank(rank):.1%}" for rank in ranks),
        ]
        tell("\n".join(lines))
        if visrank and processes(self.distributed).rank == 0:
            folder = Path(save_dir) / f"visrank_{dataset_name}"
            manager = self.datamanager  # type: ignore[attr-defined]
            drawn = draw_ranked_results(
                result, manager.fetch_test_loaders(dataset_name), manager.width, manager.height, folder, visrank_topk
            )
            tell(f"drew the {visrank_topk} nearest images of {drawn} queries into {folder}")
        return float(result.cmc[0]), float(result.mAP)


def _device_of(model: torch.nn.Module) -> torch.device:
    """Where a model is; one without parameters, an ONNX file for instance, takes images on the CPU."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def share_of_loader(loader: Any, world: OneProcess) -> Any:
    """The part of a test loader that this process reads: whole batches, so that its features are those of one process.

    Raises:
        UserError: if there are fewer images than processes.
    """
    if world.size == 1:
        return loader
    length = len(loader.dataset)
    if length < world.size:
        raise UserError(f"{length} images cannot be shared by {world.size} processes; start at most {length}")
    batch_size = min(loader.batch_size, length // world.size)
    batches = -(-length // batch_size)
    start, stop = (batches * rank // world.size * batch_size for rank in (world.rank, world.rank + 1))
    part = Subset(loader.dataset, range(start, min(stop, length)))
    if isinstance(loader, InOrderLoader):
        return InOrderLoader(part, batch_size, loader.workers, loader.pin_memory)
    return DataLoader(
        part,
        batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        collate_fn=loader.collate_fn,
    )


def tell(text: str) -> None:
    """Into the log; where nobody listens to it, onto the terminal, as torchreid does in the same place."""
    if _LOGGER.isEnabledFor(logging.INFO):
        _LOGGER.info("%s", text)
    else:
        print(text)  # noqa: T201


def with_faiss_evaluation(engine: Any, distributed: bool = False) -> Any:
    """Gives a torchreid image engine this evaluation; the engine itself is changed and returned.

    Args:
        engine: the engine.
        distributed: share every evaluation among the processes of ``torch.distributed``; all of them must call it.

    >>> import torchreid
    >>> class MyEngine(torchreid.engine.ImageSoftmaxEngine):
    ...     def __init__(self):
    ...         pass
    >>> isinstance(with_faiss_evaluation(MyEngine()), FaissEvaluationMixin)
    True

    Raises:
        UserError: if it is not an image engine.
    """
    if isinstance(engine, FaissEvaluationMixin):
        engine.distributed = distributed
        return engine
    videos = (torchreid.engine.VideoSoftmaxEngine, torchreid.engine.VideoTripletEngine)
    if not isinstance(engine, torchreid.engine.Engine) or isinstance(engine, videos):
        raise UserError(f"the faiss evaluation is for torchreid's image engines, not for {type(engine).__name__}")
    kind = type(engine)
    engine.__class__ = type(f"Faiss{kind.__name__}", (FaissEvaluationMixin, kind), {})
    engine.distributed = distributed
    return engine
