"""Fuzzes a reader with atheris (``pip install atheris``), which looks for bytes that reach new branches of it.

    PYTHONPATH=. python tests/fuzz/run.py npz -max_total_time=300 -rss_limit_mb=2048 -timeout=20 [FOLDER ...]

The first word is one of genotype, config, options, npz, history, checkpoint, index and graph; the others are
libFuzzer's, a folder of examples among them. Bytes that break the reader end it, and are left in a file of the current
folder.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

warnings.filterwarnings("ignore")
with atheris.instrument_imports(include=["torchreid_autoreid", "yaml", "numpy.lib", "zipfile", "json"]):
    from readers import READERS, read

if __name__ == "__main__":
    name = sys.argv.pop(1)
    if name not in READERS:
        sys.exit(f"unknown reader {name!r}; choose from {', '.join(READERS)}")
    place = Path(tempfile.mkdtemp()) / "fuzzed"
    atheris.Setup(sys.argv, lambda content: read(name, content, place))
    atheris.Fuzz()
