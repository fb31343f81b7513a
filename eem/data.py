"""eem data: text into tokenizers and rows; each command has its own file, `eem/data_<command>.py`."""

from eem.console import Command, new_app
from eem.data_prepare import prepare
from eem.data_publish import publish
from eem.data_tokenizer import tokenizer
from eem.data_verify import verify

app = new_app("Turn text into tokenizers and rows.\n\nExample: `eem data prepare --data train.parquet --output rows`")
app.command(cls=Command)(prepare)
app.command(cls=Command)(publish)
app.command(cls=Command)(tokenizer)
app.command(cls=Command)(verify)
