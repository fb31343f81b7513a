#!/usr/bin/env bash
# Expected: a zstd frame made with a dictionary is refused when another dictionary is given for decoding.
# Happens: raw-content dictionaries all have the id 0, and python-zstandard writes no check sum unless asked: the wrong
#   dictionary gives wrong text of the right length, without an error. write_checksum=True finds it.
# Version: zstandard 0.25.0.
# Seen: decoded with the other dictionary: wrong bytes, no error; with write_checksum: an error
. "$(dirname "$0")/_environment.sh"
packages zstandard==0.25.0
python - <<'PY'
import pydoc_data.topics
import zstandard

text = "".join(pydoc_data.topics.topics.values()).encode()
one, other = (zstandard.ZstdCompressionDict(text[i : i + 20000], dict_type=zstandard.DICT_TYPE_RAWCONTENT) for i in (0, 20000))
message = text[1000:1400]
decoder = zstandard.ZstdDecompressor(dict_data=other)
decoded = decoder.decompress(zstandard.ZstdCompressor(dict_data=one).compress(message))
try:
    decoder.decompress(zstandard.ZstdCompressor(dict_data=one, write_checksum=True).compress(message))
    checked = "no error"
except zstandard.ZstdError:
    checked = "an error"
print(f"wrong bytes: {decoded != message}, as many: {len(decoded) == len(message)}; with write_checksum: {checked}")
assert decoded != message and len(decoded) == len(message) and checked == "an error"
PY
