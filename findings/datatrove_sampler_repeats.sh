#!/usr/bin/env bash
# Expected: SamplerFilter keeps documents at random, each task of a run its own; without a seed above all.
# Happens: the random generator is made with the pipeline and copied into every task, in one process and in many. All tasks draw the
#   same numbers: of every file the documents at the same places are kept, with a seed and without. Shards in one order (one topic
#   after another, or the same texts in several languages) are not sampled independently.
# Version: datatrove 0.10.1.
# Seen (4 tasks): with a seed and without, with 1 worker and with 4, the kept places are the same in all 4
. "$(dirname "$0")/_environment.sh"
packages datatrove==0.10.1 numpy==2.4.6 orjson regex
cat > program.py <<'PY'
import json
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import SamplerFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def kept(seed: int | None, workers: int) -> list[list[str]]:
    name = f"{seed}-{workers}"
    steps = [
        JsonlReader("in"), SamplerFilter(rate=0.5, seed=seed), JsonlWriter(name, "${rank}.jsonl", compression=None)
    ]
    LocalPipelineExecutor(steps, tasks=4, workers=workers, logging_dir=f"log-{name}").run()
    return [[json.loads(line)["id"] for line in path.read_text().splitlines()] for path in Path(name).glob("*")]


if __name__ == "__main__":
    Path("in").mkdir()
    for task in range(4):
        lines = (json.dumps({"text": f"{task} {number}", "id": str(number)}) for number in range(100))
        Path(f"in/{task}.jsonl").write_text("\n".join(lines))
    for seed, workers in ((0, 1), (None, 1), (None, 4)):
        tasks = kept(seed, workers)
        sizes, first = [len(task) for task in tasks], [task[:4] for task in tasks]
        print(f"seed {seed}, {workers} workers: kept {sizes} of 100, the first {first}")
        assert len(tasks) == 4 and all(20 < size < 80 for size in sizes)
        assert all(task == tasks[0] for task in tasks), "tasks draw other numbers now"
PY
python program.py 2>/dev/null
