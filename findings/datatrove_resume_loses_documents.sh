#!/usr/bin/env bash
# Expected: an interrupted LocalPipelineExecutor that is started again, now with fewer tasks for a smaller machine, processes
#   what is missing, or refuses.
# Happens: completed tasks are remembered by number alone. Two of four tasks were done; with tasks=2 both count as done, the
#   run says that nothing is left, and half of the documents are never read. The same after a change of the pipeline.
# Version: datatrove 0.10.1.
# Seen: 40 documents, 20 after the first run (2 of 4 tasks), 20 after the run with 2 tasks
. "$(dirname "$0")/_environment.sh"
packages torch==2.13.0 datatrove==0.10.1 orjson
cat > program.py <<'PY'
import glob
import json
import os

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def run(tasks: int, **only: int) -> int:
    writer = JsonlWriter("out", output_filename="${rank}.jsonl", compression=None)
    LocalPipelineExecutor([JsonlReader("in"), writer], tasks=tasks, workers=1, logging_dir="log", **only).run()
    return len({json.loads(line)["id"] for path in glob.glob("out/*") for line in open(path)})


if __name__ == "__main__":
    os.makedirs("in")
    for name in range(4):
        with open(f"in/{name}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": "a", "id": f"{name}/{row}"}) + "\n" for row in range(10))
    interrupted = run(4, local_tasks=2)
    resumed = run(2)
    print(f"40 documents, {interrupted} after 2 of 4 tasks, {resumed} after the run with 2 tasks")
    assert interrupted == 20 and resumed == 20, "the rest is processed now"
PY
python program.py 2>/dev/null
