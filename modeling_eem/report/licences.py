"""Licences by the names that the Hub knows, for the cards."""

import difflib

# From the table at https://huggingface.co/docs/hub/repositories-licenses, which grows: other names are doubted, not
# refused.
_LISTED = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
_NAMES = frozenset(_LISTED.split())


def licence_doubt(licence: str | None) -> str | None:
    """What is wrong with a card's licence, in a line; None if nothing is."""
    if not licence:
        return "no licence: without one others may not use this. --licence names the text's, such as cc-by-4.0"
    if licence in _NAMES:
        return None
    nearest = difflib.get_close_matches(licence.lower(), sorted(_NAMES), n=3)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "`other` stands for one that it does not list"
    return f"licence {licence!r} is none of the Hub's names that are known here; {hint}"
