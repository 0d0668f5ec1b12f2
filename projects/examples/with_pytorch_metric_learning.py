"""Exact retrieval figures of embeddings that pytorch-metric-learning has made: each image against all others.

After ``embeddings, labels = tester.get_all_embeddings(dataset, model)`` call ``against_the_rest(embeddings, labels)``.
Memory stays bounded at any number of images; ``rerank=True`` and all other options of ``evaluate`` may be given.
"""

import torch

from torchreid_autoreid.evaluation import Embeddings, RetrievalResult, evaluate


def against_the_rest(embeddings: torch.Tensor, labels: torch.Tensor, **options) -> RetrievalResult:
    """mAP (``mean_average_precision``), R-precision (``r_precision``), rank-1 (``precision_at_1``) and more.

    Args:
        embeddings: (N, D).
        labels: (N,) or (N, 1).
        **options: of ``evaluate``.
    """
    # What has the query's label and camera is left out. With a camera for each image, that is the query itself.
    cameras = torch.arange(len(embeddings))
    images = Embeddings(embeddings, labels.reshape(-1), cameras)
    return evaluate(images, images, **options)


if __name__ == "__main__":
    labels = torch.arange(50).repeat_interleave(4)
    embeddings = torch.randn(50, 64)[labels] + 2 * torch.randn(200, 64)
    print(against_the_rest(embeddings, labels))
