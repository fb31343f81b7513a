"""What a file's bytes are used for, and what the encoder chose."""

from collections import Counter
from dataclasses import dataclass, field

from modeling_eem.codec.container import Kind


@dataclass
class Report:
    """Bytes of a file by their use. `file_bytes` = framing + payloads, exactly.

    `estimate_bits` is the model's cost of its windows, in bits; None if it was not asked for.
    `code_saved` is the bytes that windows with a code save over the same decoder without one. Only the encoder knows
    it; otherwise it is None.
    """

    model_id: bytes | None = None
    carry: bool = False
    plain_bytes: int = 0
    text_bytes: int = 0  # plain bytes of windows that the model coded
    header_bytes: int = 0
    record_bytes: int = 0  # heads, counts and check sums of all windows
    index_bytes: int = 0
    footer_bytes: int = 0  # including the byte that ends the records
    windows: Counter[Kind] = field(default_factory=Counter)
    payload_bytes: Counter[Kind] = field(default_factory=Counter)
    code_saved: int | None = None
    estimate_bits: float | None = None

    @property
    def framing_bytes(self) -> int:
        return self.header_bytes + self.record_bytes + self.index_bytes + self.footer_bytes

    @property
    def file_bytes(self) -> int:
        return self.framing_bytes + self.payload_bytes.total()

    @property
    def framing_bytes_per_window(self) -> float:
        """Heads, counts, check sums and index, over the windows; without header and footer, which a file has once."""
        return (self.record_bytes + self.index_bytes) / max(self.windows.total(), 1)

    @property
    def bits_per_byte(self) -> float:
        return 8 * self.file_bytes / max(self.plain_bytes, 1)

    @property
    def text_windows(self) -> int:
        """Windows that the model coded."""
        return sum(count for kind, count in self.windows.items() if kind.is_text)

    @property
    def note(self) -> str:
        """How many windows the model coded, if they hold less than half of the plain bytes, and what codes earned."""
        coded, windows, said = self.text_windows, self.windows.total(), []
        if 2 * self.text_bytes < self.plain_bytes:
            held = f" ({self.text_bytes:,} bytes)" if coded else ""
            count = f"{coded:,} of {windows:,} window{'s' * (windows > 1)}"
            said.append(f"the model coded {count}{held}: the rest is shorter with zstd, or not text")
        if self.code_saved is not None and coded:
            count = self.windows[Kind.CODED] + self.windows[Kind.CODED_FULL]
            said.append(
                f"{count:,} of {coded:,} text window{'s' * (coded > 1)} with a code, {self.code_saved:,} bytes saved"
            )
        return "; ".join(said)

    def add(self, kind: Kind, record_length: int, payload_length: int, plain_length: int) -> None:
        self.windows[kind] += 1
        self.payload_bytes[kind] += payload_length
        self.record_bytes += record_length - payload_length
        self.plain_bytes += plain_length
        self.text_bytes += plain_length if kind.is_text else 0

    def add_trailer(self, length: int, footer_length: int) -> None:
        """Add a trailer of `length` bytes, from its first byte, which ends the records, to its footer."""
        self.index_bytes = length - footer_length - 1
        self.footer_bytes = footer_length + 1

    def lines(self) -> list[str]:
        """The report in words, one item a line."""
        names = {
            "text, causal": (Kind.TEXT, Kind.TEXT_FULL),
            "text, with code": (Kind.CODED, Kind.CODED_FULL),
            "bytes, zstd": (Kind.ZSTD, Kind.ZSTD_FULL),
            "bytes, raw": (Kind.RAW,),
        }
        model = "none" if self.model_id is None else self.model_id.hex() + ", windows carry context" * self.carry
        out = [f"{'model':18} {model}", f"{'plain bytes':18} {self.plain_bytes:>12,}"]
        for name, kinds in names.items():
            if count := sum(self.windows[kind] for kind in kinds):
                payload = sum(self.payload_bytes[kind] for kind in kinds)
                out.append(f"{name:18} {payload:>12,} bytes in {count:,} window{'s' * (count > 1)}")
        parts = (("header", self.header_bytes), ("footer", self.footer_bytes), ("windows", self.record_bytes))
        parts = ", ".join(f"{name} {size:,}" for name, size in (*parts, ("index", self.index_bytes)))
        per_window = f"{self.framing_bytes_per_window:.2f} a window"
        out.append(f"{'framing':18} {self.framing_bytes:>12,} bytes: {parts}; {per_window}")
        out.append(f"{'file':18} {self.file_bytes:>12,} bytes, {self.bits_per_byte:.4f} bits a byte")
        if self.estimate_bits is not None:
            out.append(f"{'estimate':18} {self.estimate_bits / 8:>12,.1f} bytes of text windows")
        if self.code_saved is not None:
            out.append(f"{'code':18} {self.code_saved:>12,} bytes saved over the same decoder without one")
        return out


__all__ = ["Report"]
