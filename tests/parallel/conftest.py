"""Makes the ranks beside this file importable, in the tests and in the processes they start."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
