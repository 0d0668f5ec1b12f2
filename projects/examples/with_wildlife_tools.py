"""Exact retrieval figures of features that wildlife-tools has extracted: animals instead of persons.

After ``query, database = extractor(query_images), extractor(database_images)`` call ``among(query, database)``. An
individual that was photographed twice in an encounter is found too easily; ``among(query, database, "encounter")``
leaves out what the query's own encounter shows of it.
"""

from types import SimpleNamespace

import numpy as np

from torchreid_autoreid.evaluation import Embeddings, RetrievalResult, evaluate


def embeddings(part, encounter: str = "") -> Embeddings:
    """The features of a ``FeatureDataset``.

    Its ``labels`` are numbered in each dataset anew, so the names of the individuals are taken.
    """
    column = np.asarray(part.metadata[encounter]).astype(str) if encounter else None
    return Embeddings(np.asarray(part.features), np.asarray(part.metadata["identity"]).astype(str), column)


def among(query, database, encounter: str = "", **options) -> RetrievalResult:
    """Figures of retrieval of ``query`` among ``database``.

    Args:
        query, database: anything with ``features`` (N, D) and ``metadata``, a table with a column ``identity``.
        encounter: a column of both, such as ``encounter`` or ``date``.
        **options: of ``evaluate``.
    """
    return evaluate(embeddings(query, encounter), embeddings(database, encounter), **options)


if __name__ == "__main__":
    names = np.array(["Nala", "Simba", "Mufasa", "Sarabi"]).repeat(6)
    features = np.random.randn(4, 32).repeat(6, axis=0) + 1.5 * np.random.randn(24, 32)
    days = np.tile(["monday", "tuesday"], 12)
    parts = [
        SimpleNamespace(features=features[rows], metadata={"identity": names[rows], "date": days[rows]})
        for rows in (slice(0, None, 3), slice(1, None, 3))
    ]
    print(among(*parts))
    print(among(*parts, "date"))
