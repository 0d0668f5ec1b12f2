"""``autoreid search``, from a checkout."""

import sys

from torchreid_autoreid.commands import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
