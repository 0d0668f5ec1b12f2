"""``autoreid gallery``, from a checkout."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while the imports last: an end without a word

    from torchreid_autoreid.commands import main

    sys.exit(main(["gallery", *sys.argv[1:]]))
