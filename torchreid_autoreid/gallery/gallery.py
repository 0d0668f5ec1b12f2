"""The gallery: people enrolled by their feature vectors, and a threshold below which a query is nobody of them."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError, short
from ..evaluation.embeddings import as_array, as_features, as_labels, check_count, is_between
from ..files import as_path
from .nearest import Nearest, best_by_person
from .store import Snapshot, Store
from .strangers import Impostors, quantile, threshold_of_enrolled

_MOST_PROBES = 20_000


@dataclass(frozen=True)
class Calibration:
    """A threshold and where it comes from.

    Attributes:
        threshold: a query is known if its score is above.
        far: share of strangers that are taken for somebody enrolled.
        probes: impostor scores that it was estimated from.
        revision: of the gallery then; after each change of it there is a higher one.
    """

    threshold: float
    far: float
    probes: int
    revision: int


@dataclass(frozen=True)
class Answer:
    """Who the queries are.

    Attributes:
        pids: (N,) the nearest person of each query, known or not.
        scores: (N,) cosine similarity with the best vector of that person.
        margins: (N,) how much more that is than the next person's score; infinite if there is only one person.
        known: (N,) whether the score is above the threshold.
        threshold: the threshold.
        ranked_pids, ranked_scores: (N, top) the nearest people, best first.
    """

    pids: np.ndarray
    scores: np.ndarray
    margins: np.ndarray
    known: np.ndarray
    threshold: float
    ranked_pids: np.ndarray
    ranked_scores: np.ndarray


class Gallery:
    """People enrolled in a folder on disk.

    Several processes may read and write one folder at once; each change is there wholly or not at all, whenever a
    process is killed, and the others see it at their next query.

    Example:
        >>> import tempfile
        >>> gallery = Gallery.create(tempfile.mkdtemp(), dimension=3)
        >>> gallery.add(np.eye(3), ["ann", "bob", "cem"])
        >>> answer = gallery.query([[1.0, 0.1, 0.0], [1.0, 1.0, 1.0]], threshold=0.8)
        >>> answer.pids[0].item(), answer.known.tolist()
        ('ann', [True, False])
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshot: Snapshot | None = None
        self._nearest: Nearest | None = None

    @classmethod
    def create(cls, folder: str | os.PathLike[str], dimension: int, network: str = "") -> Gallery:
        """An empty gallery in a new or empty folder.

        Args:
            folder: where it is kept.
            dimension: D, the length of each vector.
            network: a name of the network that makes the vectors, such as a checksum of its file.

        Raises:
            UserError: a folder that holds something, or cannot be written.
        """
        check_count("dimension", dimension, 1)
        if not isinstance(network, str):
            raise UserError(f"network must be a text that names the network, not {short(network)}")
        return cls(Store.create(folder, int(dimension), network))

    @classmethod
    def build(cls, folder: str | os.PathLike[str], features: Any, pids: Any, network: str = "") -> Gallery:
        """A gallery of these people, in a new or empty folder.

        Args:
            folder, network: as of :meth:`create`.
            features, pids: as of :meth:`add`.

        Raises:
            UserError: as of both; the folder is as it was then.
        """
        place = as_path(folder, "the gallery's folder")
        new = not place.exists()
        gallery = cls.create(place, as_features(features).shape[1], network)
        try:
            gallery.add(features, pids)
        except BaseException:
            gallery.close()
            for path in place.iterdir():
                path.unlink()
            if new:
                place.rmdir()
            raise
        return gallery

    @classmethod
    def open(cls, folder: str | os.PathLike[str], network: str = "") -> Gallery:
        """The gallery of a folder.

        Raises:
            UserError: no gallery, a damaged one, or one of another network than ``network``, if both are named.
        """
        store = Store(folder)
        if network and store.network and network != store.network:
            store.close()
            raise UserError(
                f"{folder} was built with another network (checksum {short(store.network)}, this one has "
                f"{short(network)}); give the one it was built with"
            )
        return cls(store)

    def close(self) -> None:
        self._snapshot = self._nearest = None
        self._store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many vectors are enrolled."""
        return int((self._read().person >= 0).sum())

    @property
    def dimension(self) -> int:
        return self._store.dimension

    @property
    def network(self) -> str:
        return self._store.network

    @property
    def pids(self) -> np.ndarray:
        """(P,) the people enrolled, numbers or names, in ascending order."""
        return self._read().people.copy()

    @property
    def revision(self) -> int:
        """The number of the last change."""
        return self._read().revision

    @property
    def calibration(self) -> Calibration | None:
        """The last calibration, if there is one."""
        facts = self._store.facts()
        if "threshold" not in facts:
            return None
        return Calibration(facts["threshold"], facts["far"], facts["probes"], facts["calibrated_revision"])

    def add(self, features: Any, pids: Any) -> None:
        """Enrols vectors; people may be enrolled already, and have more vectors then.

        Args:
            features: (N, D).
            pids: (N,) whole numbers, or names; all of a gallery are of one kind.

        Raises:
            UserError: bad features or labels; nothing is enrolled then.
        """
        vectors = self._unit(features)
        self._store.add(vectors, as_identities(pids, len(vectors)))

    def remove(self, pids: Any) -> int:
        """Forgets people; returns how many vectors they had.

        Raises:
            UserError: somebody is not enrolled; nobody is removed then.
        """
        pids = np.atleast_1d(as_array(pids, "pids"))
        return self._store.remove(np.unique(as_identities(pids, len(pids))))

    def query(self, features: Any, top: int = 1, threshold: float | None = None) -> Answer:
        """Who the queries are.

        Args:
            features: (N, D).
            top: how many people to rank.
            threshold: above which score a query is known; the calibrated one if there is none.

        Raises:
            UserError: bad features, an empty gallery, neither a calibration nor a threshold.
        """
        check_count("top", top, 1)
        queries = self._unit(features)
        snapshot = self._read()
        if not len(snapshot.people):
            raise UserError(f"nobody is enrolled in {self._store.folder}; add people first")
        if threshold is None:
            calibration = self.calibration
            if calibration is None:
                raise UserError(f"{self._store.folder} is not calibrated; calibrate it, or give a threshold")
            threshold = calibration.threshold
        if not is_between(threshold, -np.inf, np.inf):
            raise UserError(f"threshold is {short(threshold)}; give a cosine similarity between -1 and 1")
        if self._nearest is None or self._nearest.snapshot is not snapshot:
            self._nearest = Nearest(snapshot)
        scores, places = self._nearest.people(queries, max(2, top))
        self._check_scores(scores)
        ranked = snapshot.people[places]
        margins = scores[:, 0] - scores[:, 1] if scores.shape[1] > 1 else np.full(len(scores), np.inf, np.float32)
        known = scores[:, 0].astype(np.float64) > threshold
        return Answer(ranked[:, 0], scores[:, 0], margins, known, float(threshold), ranked[:, :top], scores[:, :top])

    def calibrate(self, far: float = 0.01, cohort: Any = None, cohort_pids: Any = None) -> Calibration:
        """Sets the threshold at which a share ``far`` of strangers is taken for somebody enrolled.

        A stranger is wrongly known if the most similar of all people enrolled is above the threshold, so the threshold
        is a quantile of such extreme scores: those of a cohort of strangers, or of each enrolled vector among all other
        people, corrected for what a stranger changes (:mod:`.strangers`). The vectors of one person are alike, so that
        the estimate is as good as the number of different people, not of vectors, allows.

        Args:
            far: false-accept rate, between 0 and 1.
            cohort: (N, D) vectors of people who are not enrolled; without, the enrolled ones are used.
            cohort_pids: (N,) who they are, to find out that none of them is enrolled.

        Raises:
            UserError: a rate that so few scores do not tell, fewer than two people and no cohort, or a cohort that
                overlaps the gallery.
        """
        if not is_between(far, 0, 1, ends=False):
            raise UserError(f"far is {short(far)}; give a false-accept rate between 0 and 1, such as 0.01")
        snapshot = self._read()
        if not len(snapshot.people):
            raise UserError(f"nobody is enrolled in {self._store.folder}; add people first")
        if cohort is None:
            if len(snapshot.people) < 2:
                raise UserError("one person is enrolled, who tells nothing of strangers; enrol more, or give a cohort")
            impostors = self._among_others(snapshot, far)
            _check_rate(far, len(impostors.score))
            threshold, probes = threshold_of_enrolled(impostors, far), len(impostors.score)
        else:
            scores = self._of_cohort(snapshot, self._unit(cohort), cohort_pids)
            _check_rate(far, len(scores))
            threshold, probes = quantile(scores, far), len(scores)
        self._check_scores(threshold)
        found = Calibration(threshold, float(far), probes, snapshot.revision + 1)
        self._store.set_facts(
            threshold=threshold, far=found.far, probes=found.probes, calibrated_revision=found.revision
        )
        return found

    def _check_scores(self, scores: Any) -> None:
        if np.isnan(scores).any():
            raise UserError(f"{self._store.folder} holds vectors that are no numbers; restore a copy, or build it anew")

    def _among_others(self, snapshot: Snapshot, far: float) -> Impostors:
        """The scores of vectors enrolled with other people; of all, or of a sample of a large gallery."""
        rows = np.flatnonzero(snapshot.person >= 0)
        most = max(_MOST_PROBES, int(20 / far))
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        person = snapshot.person[rows]
        others, scores = np.empty(len(rows), dtype=np.int64), np.full((len(rows), 2), -np.inf, dtype=np.float32)
        for first, best in best_by_person(snapshot.vectors[rows], snapshot):
            part = slice(first, first + len(best))
            best[np.arange(len(best)), person[part]] = -np.inf
            values, places = best.topk(2, dim=1)  # with two people, the second is the probe's own, at -inf
            others[part], scores[part] = places[:, 0].numpy(), values.numpy()
        return Impostors(person, others, scores[:, 0], scores[:, 1])

    def _of_cohort(self, snapshot: Snapshot, cohort: np.ndarray, pids: Any) -> np.ndarray:
        if pids is not None:
            both = np.intersect1d(as_identities(pids, len(cohort)), snapshot.people)
            if len(both):
                raise UserError(f"{short(both[0].item())} of the cohort is enrolled; a cohort is of strangers")
        scores = np.concatenate([best.amax(1).numpy() for _, best in best_by_person(cohort, snapshot)])
        same = np.flatnonzero(scores > 1 - 1e-6)
        if len(same):
            raise UserError(
                f"vector {same[0]} of the cohort is enrolled ({len(same)} are); a cohort is of strangers, remove them"
            )
        return scores

    def _read(self) -> Snapshot:
        self._snapshot = self._store.read(self._snapshot)
        return self._snapshot

    def _unit(self, features: Any) -> np.ndarray:
        """(N, D) float32 of length 1."""
        features = as_features(features)
        if features.shape[1] != self.dimension:
            raise UserError(
                f"features have {features.shape[1]} dimensions, the gallery {self._store.folder} {self.dimension}; "
                "use the network that it was made with"
            )
        wide = features.astype(np.float64)
        # Lengths neither over- nor underflow.
        wide /= np.abs(wide).max(axis=1, keepdims=True).clip(np.finfo(np.float64).tiny)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        if not length.all():
            raise UserError(f"features are zero in row {np.flatnonzero(length == 0)[0]}; a direction is needed")
        return (wide / length).astype(np.float32)


def as_identities(pids: Any, length: int) -> np.ndarray:
    """Identities, (N,) int64 or str, or a UserError that names them; both Unicode forms of a name are one."""
    values = as_array(pids, "pids")
    names = values.dtype.kind == "U" or (values.dtype.kind == "O" and all(isinstance(pid, str) for pid in values.flat))
    if not names:
        return as_labels(values, "pids", length)
    if values.shape != (length,):
        raise UserError(f"pids have shape {values.shape} for {length} vectors; give one per vector")
    found = [unicodedata.normalize("NFC", str(name)) for name in values.tolist()]
    for row, name in enumerate(found):
        if not name or "\0" in name or not name.isprintable():
            raise UserError(f"pids hold {short(name)} in row {row}; give printable names")
    return np.array(found, dtype=str)


def _check_rate(far: float, probes: int) -> None:
    if far * (probes + 1) < 1:
        raise UserError(
            f"far {far} cannot be told from {probes} vectors; give at least {1 / (probes + 1):.2g}, or a cohort of more"
        )
