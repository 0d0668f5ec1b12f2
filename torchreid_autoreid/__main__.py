"""``python -m torchreid_autoreid`` is the command ``autoreid``."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
