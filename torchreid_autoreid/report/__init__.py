"""Pictures of searches, and their reports for people."""

from ..numbers import amount
from .html import write_report
from .plots import draw_alphas, draw_cell, draw_costs, draw_history, figure_to_rgb
from .verdict import verdict

__all__ = [
    "amount",
    "draw_alphas",
    "draw_cell",
    "draw_costs",
    "draw_history",
    "figure_to_rgb",
    "verdict",
    "write_report",
]
