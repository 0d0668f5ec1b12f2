"""The command ``train`` of torchreid_autoreid, from a checkout."""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the imports last: an end without a word
    # Before PyTorch reads it. A step is thousands of small operations; threads that spin for long while they wait for
    # one another make it up to a hundred times slower as soon as another program wants the same core, and threads that
    # never spin make it three times slower on an idle machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from torchreid_autoreid.commands import train
    from torchreid_autoreid.commands.console import run

    sys.exit(run(train.main))
