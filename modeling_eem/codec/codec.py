"""`Codec`: bytes into an `.eem` file and back, with a codec model or, for byte windows only, without one."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self

from huggingface_hub import ModelHubMixin, snapshot_download

from modeling_eem.codec.archive import Archive, Layout, describe
from modeling_eem.codec.container import MODEL_ID_BYTES, CodecError, Header, WrongModel
from modeling_eem.codec.estimate import Estimate, Sampled, estimate_file
from modeling_eem.codec.registry import default_model, release_of
from modeling_eem.codec.report import Report
from modeling_eem.codec.salvage import Salvage, salvage
from modeling_eem.codec.streams import (
    Progress,
    Reader,
    Source,
    Writer,
    decode_stream,
    encode_stream,
    no_progress,
    read_header,
)
from modeling_eem.codec.text import TokenTable
from modeling_eem.codec.window_decoder import WindowDecoder
from modeling_eem.codec.window_model import WindowModel
from modeling_eem.files import is_path_to_nothing, read_record

File = str | Path | BinaryIO


class _Open:
    """`codec.open(file)`, and `Codec.open(file)` with the codec that the file names."""

    def __get__(self, codec: "Codec | None", kind: "type[Codec]") -> Callable[[File], Archive]:
        def open_archive(file: File) -> Archive:
            """Open a file for random access: `read(start, length)`, `window(number)`.

            `Codec.open(file)` takes the default model that the file names, of any release; `codec.open(file)` takes
            files of that codec's model.

            Raises:
                WrongModel, DamagedFile: as in `decompress`, as far as header and footer show it; closes `file`.
            """
            opened = open(file, "rb", buffering=0) if isinstance(file, str | Path) else file  # noqa: SIM115 (Archive closes it)
            try:
                layout = Layout(opened)
                layout.check_place()
                able = kind.for_header(layout.header) if codec is None else codec
                return Archive(opened, layout, able._decoder(layout.header))
            except BaseException:
                opened.close()
                raise

        return open_archive


class Codec(ModelHubMixin, library_name="modeling-eem", tags=["text-compression"]):
    """Compresses any bytes into a file that every machine decodes to the same bytes.

    Args:
        model: the model that predicts text; None for a codec of byte windows only.
        carry: whether windows take the second half of the previous window as context, so that a file has twice as
            many. In every record so far this made files longer, by 1 to 2 % with the default model. A window decodes
            only after those since the last fresh start, at most 31.
    """

    def __init__(self, model: WindowModel | None, carry: bool = False) -> None:
        self.model = model
        self.carry = carry
        self._table = TokenTable(model.backend_tokenizer, model.vocab_size) if model is not None else None

    @classmethod
    def default(cls, carry: bool = False) -> Self:
        """The codec with the default model of this release. CodecError if the installation has none."""
        return cls(_load(default_model().folder), carry)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """A codec from a codec model's folder or from the Hub, with the arguments of ModelHubMixin and `carry`.

        Raises:
            ValueError: for a folder without a codec model, or the name of neither a folder nor a repository of the
                Hub; OSError if the Hub has none of that name, or cannot be reached.
        """
        folder = Path(pretrained_model_name_or_path)
        _check_name(pretrained_model_name_or_path)
        if folder.is_dir():
            if not (folder / "config.json").exists():  # built, not saved by a Codec
                return cls(_load(folder), kwargs.get("carry", False))
            read_record(folder / "config.json", {})  # ModelHubMixin reads it, and takes what it holds for an object
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            if folder.is_dir() or error.filename is not None:
                raise
            raise OSError(
                f"{pretrained_model_name_or_path} is no folder here, and the Hub gave no codec model of that name: "
                "check the name, and the connection."
            ) from error

    @classmethod
    def for_header(cls, header: Header) -> Self:
        """The codec that a file needs, if the file names no model or a default model that this release has.

        Raises:
            WrongModel: for any other model, and for a default of a later release, which the error names.
        """
        if header.model_id is None:
            return cls(None)
        release = release_of(header.model_id)
        if release is None:
            raise WrongModel(_missing(header.model_id, header.release))
        return cls(_load(release.folder))

    @property
    def model_id(self) -> bytes | None:
        """The first 8 bytes of the model's id, which files store."""
        return bytes.fromhex(self.model.id)[:MODEL_ID_BYTES] if self.model is not None else None

    def compress(self, data: bytes, progress: Progress = no_progress) -> bytes:
        """`data` as an `.eem` file."""
        out = BytesIO()
        self.compress_stream(BytesIO(data), out, progress)
        return out.getvalue()

    def compress_stream(self, reader: Reader, writer: Writer, progress: Progress = no_progress) -> Report:
        """Write all bytes of `reader` as an `.eem` file to `writer` (need not be seekable), in bounded memory."""
        return encode_stream(reader, writer, self.model, self._table, self._header(self.carry), progress)

    def decompress(self, blob: bytes, max_output: int | None = None) -> bytes:
        """The plain bytes of an `.eem` file.

        Raises:
            WrongModel: for a file of another model, before anything is decoded.
            DamagedFile: for any wrong, missing or trailing byte.
            CodecError: for more plain bytes than `max_output`.
        """
        self._decoder(Header.from_bytes(blob))
        declared = Layout(BytesIO(blob)).footer.plain_length
        if max_output is not None and declared > max_output:
            raise CodecError(f"the file holds {declared} plain bytes, more than the {max_output} that are allowed.")
        out = BytesIO()
        self.decompress_stream(BytesIO(blob), out, max_output)
        return out.getvalue()

    def decompress_stream(
        self,
        reader: Reader | Source,
        writer: Writer,
        max_output: int | None = None,
        progress: Progress = no_progress,
    ) -> int:
        """Write the plain bytes of the file in `reader` to `writer`, in bounded memory; returns how many.

        Errors are those of `decompress`. Trust what was written only after this returns without one.
        """
        source = reader if isinstance(reader, Source) else Source(reader)
        header = read_header(source)
        return decode_stream(source, writer, header, self._decoder(header), max_output, progress)

    def window(self, blob: bytes, number: int) -> bytes:
        """Plain bytes of window `number` of a file, counted from 0."""
        with self.open(BytesIO(blob)) as archive:
            return archive.window(number)

    open = _Open()

    def list(self, blob: bytes, estimate: bool = False) -> Report:
        """What a file is made of. Only the model's estimate of its text, if asked for, needs a model."""
        if not estimate:
            return describe(Layout(BytesIO(blob)))
        with self.open(BytesIO(blob)) as archive:
            return archive.report(estimate=True)

    def salvage(self, blob: bytes, max_output: int | None = None) -> Salvage:
        """Every undamaged window of a damaged file, and a list of the lost ones.

        Raises:
            CodecError: if nothing shows what file this was; for more plain bytes than `max_output`.
        """
        own = [self._header(False), self._header(True)] if self.model is not None else []
        unmarked = [Header(header.carry, header.model_id) for header in own if header.release is not None]
        return salvage(blob, [Header(), *own, *unmarked], self._decoder, max_output)

    def estimate(self, data: Sampled, sample: int = 1 << 20) -> Estimate:
        """Size and time of compressing `data`, from at most `sample` bytes spread over it; nothing is written."""
        return estimate_file(data, sample, self.model, self._table)

    def _header(self, carry: bool) -> Header:
        model_id = self.model_id
        if model_id is None:
            return Header()
        known = release_of(model_id)
        return Header(carry, model_id, known.release if known is not None else None)

    def _decoder(self, header: Header) -> WindowDecoder:
        """The decoder for a file with this header; WrongModel if the file needs another model."""
        if header.model_id is None:
            return WindowDecoder(None, None, False)
        if header.model_id != self.model_id:
            at_hand = "no model is given" if self.model_id is None else f"the model given is {self.model_id.hex()}"
            raise WrongModel(f"the file needs {_named(header.model_id, header.release)}, and {at_hand}.")
        return WindowDecoder(self.model, self._table, header.carry)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.model is None:
            raise CodecError("a codec of byte windows only has no model to save.")
        self.model.save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        carry: bool = False,
        **unused: Any,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        return cls(_load(folder), carry)


def _check_name(name: str | Path) -> None:
    """ValueError for a name that is neither a folder's nor ORG/NAME, before the Hub is asked for it."""
    path = Path(name)
    if not path.is_dir() and ("/" not in str(name) or path.exists() or is_path_to_nothing(name)):
        raise ValueError(
            f"{name} holds no codec model: name a folder that eem codec build wrote, or a repository of the Hub "
            "(ORG/NAME)."
        )


def _load(folder: Path) -> WindowModel:
    from modeling_eem.codec.integer_model import IntegerModel

    return IntegerModel.from_pretrained(folder)


def _named(model_id: bytes, release: tuple[int, int] | None) -> str:
    """The name of a file's model: its id and, for a default model, the release that brought it."""
    if release is None:
        return f"codec model {model_id.hex()}"
    return f"codec model {model_id.hex()}, a default since release {'.'.join(map(str, release))}"


def _missing(model_id: bytes, release: tuple[int, int] | None) -> str:
    needed = f"the file needs {_named(model_id, release)}"
    if release is None:
        return f"{needed}, which is not a default of this release: give its folder with --model."
    return f"{needed}: install modeling-eem {'.'.join(map(str, release))} or newer."


__all__ = ["Codec", "Estimate"]
