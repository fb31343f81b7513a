#!/usr/bin/env bash
# Expected: a Google style "Returns:" whose sentence goes on in a second line with the same indentation, as Google's own guide writes it, is one
#   description of one value.
# Happens: each line is an item of its own: the page shows two returned values, both of the function's type, with half a sentence each. Nothing
#   is reported, in strict mode either. The second line must be indented, or returns_multiple_items be false.
# Version: mkdocstrings 1.0.8, mkdocstrings-python 2.0.11, griffelib 2.4.1, mkdocs 1.6.1.
# Seen: the table of a function that returns one float: float "The mean of the values over all of", float "the rows of the batch."
. "$(dirname "$0")/_environment.sh"
packages mkdocs==1.6.1 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 griffelib==2.4.1
mkdir docs
cat > module.py <<'PY'
def mean(x: int) -> float:
    """A mean.

    Returns:
        The mean of the values over all of
        the rows of the batch.
    """
PY
echo '::: module' > docs/index.md
cat > mkdocs.yml <<'YAML'
site_name: site
strict: true
plugins:
  - mkdocstrings: {handlers: {python: {paths: [.]}}}
YAML
NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet
python - <<'PY'
import re

page = open("site/index.html").read()
table = page[page.index("Returns:") :]
rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], re.DOTALL)
values = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows][1:]
print("returned values on the page:", values)
assert values == ["float The mean of the values over all of", "float the rows of the batch."], "it is one value now"
PY
