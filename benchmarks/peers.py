"""What others have for the same work, timed beside ours on the same inputs; values are compared before times.

    python benchmarks/peers.py --output records --data-dir data/hub --codec codecs/english
    python benchmarks/peers.py --only minicons --only compressors --repeats 1 --sentences 60

| case | ours | theirs |
|---|---|---|
| minicons | `CausalEntropy` | minicons' surprisals in batches of 16 |
| transformers | its Llama with our head and loss in chunks | its Llama with its own loss |
| tokenizers | `eem data prepare`, all of it | `encode_batch` alone |
| compressors | `eem compress`, where `--codec` names a codec | xz -9e, zstd -19, zpaq -m5 |
| lm-eval | `eem evaluate harness` | `python -m lm_eval`, the same tasks and model |

A peer that is not installed is fetched into a temporary folder: from PyPI by pip, from Debian by `apt-get download`.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from figures import Figure, figure_content, figure_table
from paired import paired_ratios, seconds
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eem.console import waiting
from modeling_eem.report import Table, write_results

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "modeling_eem" / "assets" / "quickstart" / "validation.jsonl.gz"
LIBRARIES = {"minicons": "minicons", "transformers": "transformers", "tokenizers": "tokenizers", "lm_eval": "lm-eval"}
PROGRAMS = {"xz": "xz-utils", "zstd": "zstd", "zpaq": "zpaq"}
# Program -> compress and decompress, from IN to OUT.
COMMANDS = {
    "xz": ("xz -9e -k -c IN > OUT", "xz -d -c IN > OUT"),
    "zstd": ("zstd -q -19 -c IN > OUT", "zstd -q -d -c IN > OUT"),
    "zpaq": ("zpaq add OUT IN -m5 -t1 > log", "zpaq extract IN PLAIN -to OUT -t1 > log"),
}
# Headers differ by a few bytes: xz writes the size of its dictionary, zstd a checksum.
SAME_SIZE = 64
TASKS = ("arc_easy", "lambada_openai", "swag")


@dataclass(frozen=True)
class Options:
    """What the cases are measured on.

    Attributes:
        folder: for what is written on the way.
        codec: a folder of `eem codec build`.
        data_dir: ORG/NAME folders of the tasks' data; None: the Hub.
        limit: rows of each task.
    """

    folder: Path
    repeats: int
    sentences: int
    codec: Path | None
    data_dir: Path | None
    limit: int


def fetch_libraries(folder: Path) -> None:
    """Put libraries that are missing where this process and its children find them."""
    missing = [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    if missing:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder, *missing], check=True)
        sys.path.append(str(folder))
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(folder)])


def fetch_programs(folder: Path) -> None:
    """Unpack Debian packages of programs that are missing, and put them on the path."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        subprocess.run(["apt-get", "-qq", "download", *missing], cwd=folder, check=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, folder], check=True)
        os.environ["PATH"] += os.pathsep + str(folder / "usr" / "bin")


def minicons(options: Options) -> Iterator[Figure]:
    from surprisal_cases import surprisals

    yield from surprisals(options.repeats, options.sentences)


def transformers(options: Options) -> Iterator[Figure]:
    """A training step of one Llama; the losses of both heads are compared."""
    from training_cases import check_equal, llama_of, mixer, ours_step, random_rows, step_of

    from modeling_eem.training import TOKEN_LOSSES
    from modeling_eem.training.token_loss_head import TokenLossHead
    from modeling_eem.training.token_losses import TokenLossOptions
    from modeling_eem.training.training_forward import forward_replaced

    llama, ids_BT = llama_of(mixer().num_parameters()), random_rows()
    head = TokenLossHead(llama, TOKEN_LOSSES["cross_entropy"], TokenLossOptions())

    def loss() -> torch.Tensor:
        with forward_replaced(llama, head):
            return llama(input_ids=ids_BT, labels=ids_BT).loss

    with torch.no_grad():
        theirs = llama(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        check_equal(loss().item(), theirs.item(), "Llama's loss")
    ratios = paired_ratios(step_of(llama, loss), ours_step(llama, ids_BT), options.repeats)
    yield Figure("training step of transformers' Llama with our head, speed over its own", ratios)


def tokenizers(options: Options) -> Iterator[Figure]:
    from prepare_cases import prepare

    yield from prepare(options.repeats)


def lm_eval(options: Options) -> Iterator[Figure]:
    """Whole commands, imports and loading included; all values that both give are equal."""
    model = options.folder / "llama"
    _save_llama(model)
    limit = ["--limit", str(options.limit)]
    out = {name: options.folder / name for name in ("ours", "theirs")}
    environment = dict(os.environ)
    if options.data_dir is not None:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def ours() -> None:
        where = [] if options.data_dir is None else ["--data-dir", options.data_dir]
        command = ["-m", "eem", "evaluate", "harness", "--model", model, "--tasks", *TASKS, "--output", out["ours"]]
        _run([sys.executable, *command, *where, "--bootstrap-iters", 0, "--batch-size", 8, *limit], environment, ROOT)

    def theirs() -> None:
        tasks = ["--tasks", ",".join(TASKS), "--output_path", out["theirs"]]
        command = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu", *tasks]
        # Stock tasks find their data as folders below the current one.
        where = ROOT if options.data_dir is None else options.data_dir
        _run([sys.executable, *command, "--batch_size", 8, *limit], environment, where)

    ours()
    theirs()
    compared = _compare_scores(out["ours"] / "harness.json", next(out["theirs"].rglob("results_*.json")))
    ratios = [1 / ratio for ratio in paired_ratios(ours, theirs, options.repeats, warm_up=False)]
    note = f"lm-eval: {compared} equal values of {', '.join(TASKS)}, {options.limit} rows each."
    yield Figure("eem evaluate harness, time over lm-eval's own command", ratios, 1.05, is_ceiling=True, notes=[note])


def _run(command: Sequence[object], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run([*map(str, command)], env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")


def _save_llama(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        **special,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _compare_scores(ours: Path, theirs: Path) -> int:
    """The number of values that both commands give."""
    (model,) = json.loads(ours.read_text())["models"]
    results = json.loads(theirs.read_text())["results"]
    compared = 0
    for task, scores in model["tasks"].items():
        for metric, score in scores["metrics"].items():
            if abs(score["value"] - results[task][metric]) > 1e-5 * max(1.0, abs(score["value"])):
                raise AssertionError(f"{task}, {metric}: ours is {score['value']}, lm-eval's {results[task][metric]}")
            compared += 1
    return compared


def compressors(options: Options) -> Table:
    """The text that is held out in the quickstart, as one file; every program gives it back."""
    import gzip

    from modeling_eem.evaluation.compressors import compressed_bits

    documents = [json.loads(line)["text"] for line in gzip.decompress(TEXT.read_bytes()).splitlines()]
    plain = options.folder / "plain"
    plain.write_text("\n".join(documents), encoding="utf-8")
    rows = []
    commands = dict(COMMANDS)
    if options.codec is not None:
        eem = f"{sys.executable} -m eem"
        commands["eem"] = (
            f"{eem} compress --model {options.codec} --stdout IN > OUT",
            f"{eem} decompress --model {options.codec} --stdout IN > OUT",
        )
    for name, (forward, backward) in commands.items():
        # zpaq gives a file back under the name that it was added by; eem and zpaq want names with their endings.
        packed, back = options.folder / f"packed.{name}", options.folder / f"back-{name}"
        took = []
        for command, source, target in ((forward, plain, packed), (backward, packed, back)):
            words = command.replace("PLAIN", plain.name).replace("IN", source.name).replace("OUT", target.name)
            took.append(seconds(lambda words=words: subprocess.run(words, shell=True, check=True, cwd=options.folder)))
        if back.read_bytes() != plain.read_bytes():
            raise AssertionError(f"{name} does not give the file back")
        size = packed.stat().st_size
        rows.append((name, size, 8 * size / plain.stat().st_size, *took))
    for name, bits in compressed_bits(plain.read_bytes(), ["xz", "zstd"]).items():
        size = next(row[1] for row in rows if row[0] == name)
        if abs(bits // 8 - size) > SAME_SIZE:
            raise AssertionError(f"{name}: the program writes {size} bytes, `eem evaluate bits` counts {bits // 8}")
    return Table(
        columns=("program", "bytes", "bits per byte", "compress, s", "decompress, s"),
        rows=rows,
        title=f"Compressors on {plain.stat().st_size:,} bytes of held-out text",
        notes=["xz -9e, zstd -19, zpaq -m5, eem with the codec given by --codec; start-up included, one run each."],
        formats={"bytes": ",d", "bits per byte": ".3f", "compress, s": ".2f", "decompress, s": ".2f"},
    )


CASES: dict[str, Callable[[Options], Iterator[Figure]]] = {
    "minicons": minicons,
    "transformers": transformers,
    "tokenizers": tokenizers,
    "lm-eval": lm_eval,
}
COMPRESSORS = "compressors"
NAMES = ", ".join([*CASES, COMPRESSORS])


def peers(
    output: Annotated[Path | None, typer.Option(help="Folder for peers.md and peers.json.")] = None,
    only: Annotated[list[str] | None, typer.Option(help=f"By default all: {NAMES}.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs that a ratio is the median of.")] = 5,
    sentences: Annotated[int, typer.Option(min=1, help="Of the text that ships, for minicons.")] = 600,
    codec: Annotated[Path | None, typer.Option(help="A folder of `eem codec build`, for compressors.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="ORG/NAME folders for lm-eval; else the Hub.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of each of lm-eval's tasks.")] = 100,
) -> None:
    """Compare, print the tables, and exit with 1 if a floor is missed."""
    if unknown := set(only or ()) - {*CASES, COMPRESSORS}:
        raise typer.BadParameter(f"no case {', '.join(sorted(unknown))}; there are {NAMES}")
    console, tables = Console(), []
    figures: list[Figure] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fetch_libraries(folder / "libraries")
        absolute = [None if path is None else path.resolve() for path in (codec, data_dir)]
        options = Options(folder, repeats, sentences, *absolute, limit)
        for name, case in CASES.items():
            if not only or name in only:
                with waiting(name):
                    figures += case(options)
        if not only or COMPRESSORS in only:
            with waiting(COMPRESSORS):
                fetch_programs(folder)
                tables.append(compressors(options))
    if figures:
        tables.insert(0, figure_table(figures, "Ours beside its peers"))
    for table in tables:
        console.print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        content = {
            "figures": [figure_content(figure) for figure in figures],
            "tables": [json.loads(table.to_json()) for table in tables],
        }
        write_results(output, "peers", tables, content, packages=(*LIBRARIES.values(), "torch"))
    if any(figure.is_behind for figure in figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(peers)
