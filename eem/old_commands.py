"""The four commands of version 0.1: each names the command that replaced it, and exits with 2."""

import shlex
import sys


def _moved(old: str, new: str) -> None:
    print(f"error: {old} is now `{new}`: run `{shlex.join([*new.split(), *sys.argv[1:]])}`", file=sys.stderr)
    sys.exit(2)


def eem_data() -> None:
    _moved("eem-data", "eem data")


def eem_entropy() -> None:
    _moved("eem-entropy", "eem entropy")


def eem_quickstart() -> None:
    _moved("eem-quickstart", "eem quickstart")


def eem_train() -> None:
    _moved("eem-train", "eem train")
