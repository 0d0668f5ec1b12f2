"""One set of features under each definition of the mAP that is in use, so that two tables can be compared.

The rank-1 accuracy has one definition; it differs between rows by what is ranked only. What each repository computes
was read in its source: KaiyangZhou/deep-person-reid f8cd150, JDAI-CV/fast-reid c9bc3ce, michuanhaohao/reid-strong-
baseline 3da7e6f, layumi/Person_reID_baseline_pytorch 82ff40f, zhunzhong07/person-re-ranking 278f2c7 (which has
Market-1501's compute_AP.m). The last two count a query without a true match as 0, where the others and we leave it
out; the usual test sets have none. fast-reid's re-ranked distances are of a kind of their own (SpCL's weights, and
the plain distance not divided by its largest), which no row has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .embeddings import Embeddings
from .retrieval import evaluate

STANDARD = "mean of the precision at each match"
TRAPEZOID = "trapezoid under precision and recall"


@dataclass(frozen=True)
class Figure:
    """The figures by one definition.

    Attributes:
        ranking: what is ranked: plain or re-ranked distances, and how these are made.
        precision: how a query's AP is averaged.
        reported_by: repositories whose tables are of this kind.
        mAP, rank1: fractions.
    """

    ranking: str
    precision: str
    reported_by: str
    mAP: float
    rank1: float


# (ranking, options of evaluate, who reports the standard AP, who the trapezoid)
_RANKINGS: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    (
        "plain",
        {},
        "KaiyangZhou/deep-person-reid, JDAI-CV/fast-reid, michuanhaohao/reid-strong-baseline",
        "Market-1501's own MATLAB code, layumi/Person_reID_baseline_pytorch, zhunzhong07/person-re-ranking",
    ),
    (
        "re-ranked, torchreid's distances (squared once more)",
        {"rerank": True, "definition": "torchreid"},
        "KaiyangZhou/deep-person-reid",
        "layumi/Person_reID_baseline_pytorch",
    ),
    (
        "re-ranked, Zhong's distances",
        {"rerank": True, "definition": "zhong"},
        "michuanhaohao/reid-strong-baseline",
        "zhunzhong07/person-re-ranking",
    ),
)


def figures_by_definition(query: Embeddings, gallery: Embeddings, **options: Any) -> list[Figure]:
    """The figures under each definition.

    Args:
        query, gallery: as in ``evaluate``.
        options: of ``evaluate``, but rerank, definition and rerank_junk. With ``junk_pids``, re-ranking is done with
            and without junk among the neighbours.

    Example:
        >>> import numpy as np
        >>> one = Embeddings(np.eye(4), [0, 1, 0, 1], [0, 0, 1, 1])
        >>> [round(figure.mAP, 3) for figure in figures_by_definition(one, one, k1=2, k2=1)][:2]
        [0.583, 0.417]
    """
    fixed = {"rerank", "definition", "rerank_junk"} & options.keys()
    if fixed:
        raise UserError(f"{', '.join(sorted(fixed))} differ from definition to definition; leave them out")
    found = []
    for ranking, extra, standard, trapezoid in _RANKINGS:
        for junk in (True, False) if extra and len(options.get("junk_pids", ())) else (True,):
            result = evaluate(query, gallery, **options, **extra, rerank_junk=junk)
            name = ranking if junk else f"{ranking}, junk left out of the neighbours"
            found.append(Figure(name, STANDARD, standard, result.mAP, result.rank1))
            found.append(Figure(name, TRAPEZOID, trapezoid, result.figures["trapezoid_mAP"], result.rank1))
    return found
