"""Link what a wheel depends on from this environment into another: its core dependencies and theirs, and no extra.

    python .ci/link_dependencies.py dist/modeling_eem-0.2.0-py3-none-any.whl env/lib/python3.11/site-packages

So a fresh environment has exactly what `pip install modeling-eem` brings, in a second and without a download.
"""

import sys
import zipfile
from email.parser import HeaderParser
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(requirements: list[str], extras: set[str], found: dict[str, set[str]]) -> None:
    """Collect in `found` the extras wanted of every distribution that `requirements` lead to."""
    for text in requirements:
        requirement = Requirement(text)
        marker, name = requirement.marker, canonicalize_name(requirement.name)
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            continue
        if name in found and requirement.extras <= found[name]:
            continue
        found.setdefault(name, set()).update(requirement.extras)
        needed(distribution(name).requires or [], set(requirement.extras), found)


def link(name: str, target: Path) -> None:
    """The distribution's folders and files at the top of site-packages, as links."""
    installed = distribution(name)
    root = Path(str(installed.locate_file("")))
    for part in {file.parts[0] for file in installed.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        link = target / part
        if not link.exists():
            link.symlink_to(root / part)


def main(wheel: str, site_packages: str) -> None:
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = HeaderParser().parsestr(file.read(metadata).decode()).get_all("Requires-Dist") or []
    found: dict[str, set[str]] = {}
    needed(requirements, set(), found)
    for name in found:
        link(name, Path(site_packages))
    print(f"{len(found)} distributions: {' '.join(sorted(found))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
