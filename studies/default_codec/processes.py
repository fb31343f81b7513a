"""What `eem compress` and `eem decompress` take as processes of their own: seconds, processor time, memory.

    python studies/default_codec/processes.py --text quickstart/held_out.txt --output studies/default_codec

The first call of each finds nothing compiled; the second is what every later call costs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from modeling_eem.report import Table, write_results
from modeling_eem.report.provenance import PACKAGES

# The largest child of a process is the one it waited for, so each command gets a parent of its own.
PARENT = """
import resource, subprocess, sys, time
begin = time.perf_counter()
subprocess.run([sys.executable, "-P", "-m", "eem", *sys.argv[1:]], check=True, capture_output=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    arguments = parser.parse_args()

    data, rows = arguments.text.read_bytes(), []
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name) / "text"
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(name) / "cache")}
        for call in ("first", "second"):
            for size, command in ((len(data), "compress"), (len(data), "decompress"), (1000, "compress")):
                plain.write_bytes(data[:size])
                file = plain if command == "compress" else plain.with_name("text.eem")
                parent = [sys.executable, "-P", "-c", PARENT, command, "--force", str(file)]
                done = subprocess.run(parent, env=environment, capture_output=True, text=True, check=True)
                rows.append((call, command, size, *map(float, done.stdout.split())))
                print(rows[-1], flush=True)
    table = Table(
        columns=("call", "command", "bytes of text", "seconds", "CPU seconds", "peak MB"),
        rows=rows,
        title="Commands with the default model",
        formats={"bytes of text": ",", "seconds": ".1f", "CPU seconds": ".1f", "peak MB": ".0f"},
    )
    content = {"data": [arguments.text.name], "rows": [list(row) for row in rows]}
    write_results(arguments.output, "processes", [table], content, packages=(*PACKAGES, "numba", "numpy"))


if __name__ == "__main__":
    main()
