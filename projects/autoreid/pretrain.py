"""``autoreid pretrain``, from a checkout."""

import sys

from torchreid_autoreid.commands import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
