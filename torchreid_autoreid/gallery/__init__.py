"""A gallery of people on disk that answers who somebody is, or that nobody enrolled is it."""

from .gallery import Answer, Calibration, Gallery

__all__ = ["Answer", "Calibration", "Gallery"]
