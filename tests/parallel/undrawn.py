"""The search command without its drawings, for torchrun."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pictures

if __name__ == "__main__":
    pictures.draw_nothing()
    runpy.run_path(str(Path(__file__).parents[2] / "projects" / "autoreid" / "search.py"), run_name="__main__")
