"""One of several processes of a launch, without a launcher: none ends it from outside."""

import os
import resource
import sys


def entropy_at_speed(rank: int, port: int, note: str, arguments: list[str], speed: float) -> None:
    """`command`, in a process that measures this speed in tokens a second."""
    from modeling_eem.entropy import corpus_run

    corpus_run.measure_speed = lambda *_: speed
    command(rank, port, note, arguments)


def command(rank: int, port: int, note: str, arguments: list[str], file_limit: int | None = None) -> None:
    """Run `eem` as one of two processes; what it says goes to a file."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    said = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.argv = ["eem", *arguments]
    from eem.__main__ import main

    main()
