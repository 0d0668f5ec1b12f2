"""Pictures of a search, and its report for people."""

from .html import write_report
from .plots import draw_alphas, draw_cell, draw_history, figure_to_rgb

__all__ = ["draw_alphas", "draw_cell", "draw_history", "figure_to_rgb", "write_report"]
