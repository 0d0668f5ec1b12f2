"""torchreid's engines with retrieval evaluation in bounded memory, at any size."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchreid
from torch.nn import functional as F

from ..errors import UserError
from ..evaluation import Embeddings, RetrievalResult, evaluate

__all__ = ["FaissEvaluationMixin", "with_faiss_evaluation"]

_LOGGER = logging.getLogger(__name__)


class FaissEvaluationMixin:
    """Replaces the evaluation of a torchreid image engine: same figures, no dense matrix, no sort.

    Put it before the engine, ``class MyEngine(FaissEvaluationMixin, torchreid.engine.ImageTripletEngine)``, or give it
    to an engine that exists with :func:`with_faiss_evaluation`.
    """

    @torch.no_grad()
    def extract_embeddings(self, loader: Iterable[Any], normalize_feature: bool = False) -> Embeddings:
        """Features of all images of a loader, by the model in eval mode; its modes are restored.

        Args:
            loader: yields torchreid's batches.
            normalize_feature: divide each vector by its length.
        """
        model = self.model  # type: ignore[attr-defined]
        device = next(model.parameters()).device
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        parts: tuple[list[torch.Tensor], list[Any], list[Any]] = ([], [], [])
        try:
            for data in loader:
                images, pids, camids = self.parse_data_for_eval(data)  # type: ignore[attr-defined]
                features = self.extract_features(images.to(device, non_blocking=True))  # type: ignore[attr-defined]
                features = F.normalize(features.float(), dim=1) if normalize_feature else features.float()
                for part, values in zip(parts, (features.cpu(), pids, camids), strict=True):
                    part.append(values)
        finally:
            for module, training in modes:
                module.training = training
        if not parts[0]:
            raise UserError("there are no images to evaluate; check the dataset's query and gallery")
        features, pids, camids = (torch.cat([torch.as_tensor(value) for value in part]) for part in parts)
        return Embeddings(features.numpy(), pids.numpy(), camids.numpy())

    def retrieve(
        self,
        query_loader: Iterable[Any],
        gallery_loader: Iterable[Any],
        dist_metric: str = "euclidean",
        normalize_feature: bool = False,
        rerank: bool = False,
        use_metric_cuhk03: bool = False,
        max_rank: int = 50,
        topk: int = 0,
    ) -> RetrievalResult:
        """Evaluates retrieval of one loader's images among another's; the options are torchreid's.

        Args:
            max_rank: length of the CMC curve.
            topk: how many nearest gallery positions a query to return in the result.
        """
        query = self.extract_embeddings(query_loader, normalize_feature)
        gallery = self.extract_embeddings(gallery_loader, normalize_feature)
        return evaluate(
            query,
            gallery,
            metric=dist_metric,
            rerank=rerank,
            use_metric_cuhk03=use_metric_cuhk03,
            max_rank=max_rank,
            topk=topk,
        )

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
            max_rank=max(50, *ranks),
            topk=visrank_topk if visrank else 0,
        )
        lines = [
            f"** Results{f' on {dataset_name}' if dataset_name else ''} "
            f"({dist_metric}{', re-ranked' if rerank else ''}, {time.monotonic() - started:.1f} s) **",
            f"mAP: {result.mAP:.1%}",
            f"mINP: {result.mINP:.1%}",
            "CMC curve",
            *(f"Rank-{rank:<3}: {result.rank(rank):.1%}" for rank in ranks),
        ]
        _LOGGER.info("%s", "\n".join(lines))
        if visrank:
            folder = Path(save_dir) / f"visrank_{dataset_name}"
            manager = self.datamanager  # type: ignore[attr-defined]
            draw_ranked_results(
                result, manager.fetch_test_loaders(dataset_name), manager.width, manager.height, folder, visrank_topk
            )
        return float(result.cmc[0]), float(result.mAP)


def draw_ranked_results(
    result: RetrievalResult,
    dataset: tuple[Sequence[Any], Sequence[Any]],
    width: int,
    height: int,
    folder: Path,
    topk: int,
) -> None:
    """Draws each query beside its ``topk`` nearest gallery images, by torchreid's own function, a query at a time.

    That function sorts a dense matrix; here it gets a row that has the nearest items only, in their order.

    Args:
        result: with ``topk_indices``.
        dataset: the query and gallery items, ``(path, pid, camid, …)`` each.
        width, height: of an image, in pixels.
        folder: where the pictures go.
    """
    queries, gallery = dataset
    assert result.topk_indices is not None
    for query, nearest in zip(queries, result.topk_indices, strict=True):
        found = [gallery[index] for index in nearest if index >= 0]
        order = np.arange(len(found), dtype=np.float32)[None, :]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints three lines a call
            torchreid.utils.visualize_ranked_results(
                order, ([query], found), "image", width=width, height=height, save_dir=str(folder), topk=topk
            )
    _LOGGER.info("drew the %d nearest images of %d queries into %s", topk, len(queries), folder)


def with_faiss_evaluation(engine: Any) -> Any:
    """Gives a torchreid image engine this evaluation; the engine itself is changed and returned.

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
        return engine
    videos = (torchreid.engine.VideoSoftmaxEngine, torchreid.engine.VideoTripletEngine)
    if not isinstance(engine, torchreid.engine.Engine) or isinstance(engine, videos):
        raise UserError(f"the faiss evaluation is for torchreid's image engines, not for {type(engine).__name__}")
    kind = type(engine)
    engine.__class__ = type(f"Faiss{kind.__name__}", (FaissEvaluationMixin, kind), {})
    return engine
