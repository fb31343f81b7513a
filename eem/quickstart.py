"""eem quickstart: train an entropy estimation model and a causal baseline with equal compute; compare their bits."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eem.console import check_output, keeps, one_line_errors, print_error, progress_bar, quiet_loading, waiting

if TYPE_CHECKING:
    from modeling_eem.bits import CodeLength
    from modeling_eem.codec.report import Report
    from modeling_eem.report import LearningCurve, Table
    from modeling_eem.training import Run

FOLDERS = {"EEM": "eem", "causal baseline": "causal"}
# Training text that the codec's grids, and the prior of an EEM's code, are fitted to.
CALIBRATION_BYTES = 300_000


@one_line_errors()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints, table, plot and heat map.")] = Path(
        "quickstart"
    ),
    configs: Annotated[
        Path | None, typer.Option(help="Folder with quickstart.yaml and quickstart-causal.yaml; if not given, ours.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Train for so many steps; all held-out text is still measured.", min=1)
    ] = None,
) -> None:
    """Train both models of the quickstart, measure them on held-out text, and compress that text with them.

    Takes five to seven minutes on two CPU cores.

    Example: `eem quickstart --output quickstart`
    """
    from rich.console import Console

    from modeling_eem.codec.float_model_parts import float_parts
    from modeling_eem.data.documents import read_documents
    from modeling_eem.evaluation import compressed_bits, held_out
    from modeling_eem.files import ASSETS, write_atomically
    from modeling_eem.report import learning_curves
    from modeling_eem.training import keep_freed_memory, prepare_run, training_flops

    check_output(output)
    keep_freed_memory()
    quiet_loading()
    console = Console()
    began = time.monotonic()
    is_ours, configs = configs is None, configs or ASSETS / "configs"
    # Both runs write their logs into one folder, so neither may leave a checkpoint there.
    arguments = ["--output_dir", str(output / "trainer"), "--save_strategy", "no"]
    arguments += [] if max_steps is None else ["--max_steps", str(max_steps)]
    runs = {
        "EEM": prepare_run(configs / "quickstart.yaml", arguments),
        "causal baseline": prepare_run(configs / "quickstart-causal.yaml", arguments),
    }
    for name, run in runs.items():
        if not (run.data.train_files and run.data.validation_files):
            raise ValueError(f"the {name}'s run file must name train_files and validation_files: both are compressed.")
        float_parts(run.model)  # it will compress, or say now why it cannot
    flops = {name: training_flops(run.model, run.collator.max_length) for name, run in runs.items()}
    curves, lengths, files, blobs, num_steps = {}, {}, {}, {}, {}
    with keeps(lambda: "the quickstart keeps no checkpoints; the same command begins again."):
        for name, run in runs.items():
            curves[name], num_steps[name] = _fit(run, name)
            run.model.save_pretrained(output / FOLDERS[name])  # whatever comes after
            run.tokenizer.save_pretrained(output / FOLDERS[name])
            with progress_bar(f"measuring {name}", len(run.held_out_rows)) as steps:
                lengths[name] = held_out(run, steps.advance)
        texts = [document.text for document in read_documents(runs["causal baseline"].data.validation_files)]
        held_out_file = write_atomically(output / "held_out.txt", "".join(texts))
        for name, run in runs.items():
            with waiting(f"compressing {held_out_file} with the {name}"):
                files[name], blobs[name] = _compress(run, held_out_file, output / "codec" / FOLDERS[name])
    compressed = write_atomically(output / "held_out.txt.eem", blobs["causal baseline"])
    general = compressed_bits(held_out_file.read_bytes(), ("gzip", "bzip2", "xz"))
    table = _table(runs, num_steps, flops, lengths, files, general)
    console.print(table)
    plot = learning_curves(
        output / "learning_curve.png",
        list(curves.values()),
        unit="held-out bits per byte, the code's bits included",
        title="Equal training compute: entropy estimation model and causal baseline",
        references={name: bits / lengths["causal baseline"].num_bytes for name, bits in general.items()},
    )
    heat_map = _heat_map(output, runs["causal baseline"], texts[0])
    write_atomically(output / "results.md", table.to_markdown())
    write_atomically(output / "results.json", table.to_json())
    for name, folder in FOLDERS.items():
        compressors = {kind: bits / lengths[name].num_bytes for kind, bits in general.items()}
        card = _card(name, runs[name], num_steps[name], flops[name], lengths[name], compressors, is_ours)
        _describe(output / folder, card, table, plot)
    console.print(f"{output}/eem and {output}/causal load with AutoModelForCausalLM.from_pretrained")
    console.print(f"{compressed}: held-out text, decoded to the same bytes with the codec model {output}/codec/causal")
    console.print(f"{plot}: learning curves\n{heat_map}: losses of a paragraph, token by token")
    console.print(f"{time.monotonic() - began:.0f} seconds")


def _fit(run: Run, name: str) -> tuple[LearningCurve, int]:
    """Train; the learning curve, and the number of steps. Weights that are not finite end the command."""
    from eem.training_progress import ProgressCallback
    from modeling_eem.training import RunTrainer, learning_curve
    from modeling_eem.training.loss_watch import check_weights

    progress = ProgressCallback(name)
    trainer = RunTrainer(run, [progress])
    with progress.open:
        try:
            trainer.fit()
            check_weights(run.model, trainer.state.global_step)
        except FloatingPointError as error:
            print_error(str(error))
            raise typer.Exit(1) from error
    return learning_curve(run, trainer.state, name), trainer.state.global_step


def _compress(run: Run, file: Path, folder: Path) -> tuple[Report, bytes]:
    """Build the run's codec model in `folder`, and compress `file`: its report, and bytes that decoded correctly."""
    from modeling_eem.codec import Codec, build_integer_model
    from modeling_eem.data.documents import read_documents
    from modeling_eem.files import folder_at_once

    calibration: list[str] = []
    for document in read_documents(run.data.train_files):
        calibration.append(document.text)
        if sum(map(len, calibration)) >= CALIBRATION_BYTES:
            break
    built = build_integer_model(run.model, run.tokenizer, calibration)
    with folder_at_once(folder) as unfinished:
        built.save_pretrained(unfinished)
    plain, written = file.read_bytes(), BytesIO()
    codec = Codec.from_pretrained(folder)
    report = codec.compress_stream(BytesIO(plain), written)
    blob = written.getvalue()
    if codec.decompress(blob) != plain:
        raise RuntimeError(f"{file} does not decode to itself. Please report this.")
    return report, blob


def _table(
    runs: dict[str, Run],
    num_steps: dict[str, int],
    flops: dict[str, int],
    lengths: dict[str, CodeLength],
    files: dict[str, Report],
    general: dict[str, int],
) -> Table:
    from modeling_eem.codec.container import Kind
    from modeling_eem.report import Table

    rows: list[tuple] = []
    for name, run in runs.items():
        length = lengths[name]
        rows.append(
            (
                name,
                run.model.num_parameters() / 1e6,
                flops[name] / 1e9,
                length.bits_per_byte,
                files[name].bits_per_byte,
                length.code_bits / length.num_bytes,
                length.cross_entropy,
            )
        )
    num_bytes = lengths["causal baseline"].num_bytes
    rows += [(name, None, None, bits / num_bytes, bits / num_bytes, None, None) for name, bits in general.items()]
    best = min(lengths, key=lambda name: lengths[name].bits_per_byte)
    run = runs["causal baseline"]
    num_rows = {name: num_steps[name] * run.rows_per_step for name, run in runs.items()}
    given = " and ".join(f"the {name} {number:,}" for name, number in num_rows.items())
    if len(set(num_rows.values())) == 1:
        given = f"both models the same {num_rows['EEM']:,}"
    cut_short = runs["EEM"].collator.random_prefix_probability
    kinds = sorted({"bfloat16 autocast" if run.arguments.bf16 else "float32" for run in runs.values()})
    windows = files["EEM"].windows
    coded = windows[Kind.CODED] + windows[Kind.CODED_FULL]
    return Table(
        columns=(
            "what",
            "M params",
            "GFLOPs a row",
            "bits a byte",
            "in a file",
            "of them code",
            "nats a token",
        ),
        rows=rows,
        title="Held-out code length",
        notes=(
            f"At this size and after {num_steps[best]} steps the {best} is ahead.",
            "Bits a byte of held-out text, the code's bits included; nats a token without them.",
            "In a file: what `eem compress` writes, windows, framing and all. There the decoder goes without the "
            f"EEM's code wherever that is shorter: it took the code in {coded:,} of {windows.total():,} windows.",
            f"They were trained in {' and '.join(kinds)}; float32 gives the same table on every processor, but for "
            "rounding.",
            f"Training gave {given} rows of up to {run.collator.max_length} tokens ({cut_short:.0%} of the EEM's were "
            "cut short), and they code windows of that length one by one; the compressors get the whole "
            f"{num_bytes:,} bytes at once.",
        ),
        formats={
            "M params": ".2f",
            "GFLOPs a row": ".2f",
            "bits a byte": ".3f",
            "in a file": ".3f",
            "of them code": ".3f",
            "nats a token": ".3f",
        },
    )


def _heat_map(output: Path, run: Run, text: str) -> Path:
    """The causal model's own cross-entropy of each token of a paragraph, in bits."""
    import torch

    from modeling_eem.bits import nats_to_bits
    from modeling_eem.data.tokenizer import token_bytes
    from modeling_eem.files import write_atomically
    from modeling_eem.loading import evaluating
    from modeling_eem.report import entropy_heatmap_html

    model = run.model
    # Not `truncation=True`: it would stay in the tokenizer, and be saved with it (transformers 5.23).
    input_ids = run.tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, : run.collator.max_length]
    input_ids = input_ids.to(model.device)
    with evaluating(model):
        logits = model(input_ids).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, input_ids[0, 1:], reduction="none")
    html = entropy_heatmap_html(
        token_bytes(run.tokenizer, input_ids[0, 1:].tolist()),
        [nats_to_bits(nats) for nats in losses.tolist()],
        unit="bits",
        title="How surprising each token was",
        subtitle="Cross-entropy of the quickstart's causal baseline on held-out text, in bits a token",
    )
    return write_atomically(output / "heat_map.html", html)


def _describe(folder: Path, card: str, table: Table, plot: Path) -> None:
    """A card, its figure and the numbers beside a model."""
    from modeling_eem.files import write_atomically

    write_atomically(folder / "learning_curve.png", plot.read_bytes())
    write_atomically(folder / "README.md", card)
    write_atomically(folder / "results.json", json.dumps(json.loads(table.to_json()), indent=2))


def _card(
    name: str,
    run: Run,
    num_steps: int,
    flops: int,
    length: CodeLength,
    compressors: dict[str, float],
    is_ours: bool,
) -> str:
    """A model card; what only our own text is known for is left out of one of `--configs`."""
    from modeling_eem.evaluation.code_length import code_bits_of
    from modeling_eem.files import without_secrets
    from modeling_eem.report.checkpoint_card import CheckpointFacts, checkpoint_card

    arguments, is_eem, data = run.arguments, bool(code_bits_of(run.config)), run.data
    held_out_name, train_data = ", ".join(without_secrets(data.validation_files)), data.train_files
    prompt = CheckpointFacts.prompt
    limits = ["A demonstration: far too small and too briefly trained to write or to understand text."]
    if is_ours:
        held_out_name = "State of the Union addresses and chapters of Moby-Dick"
        train_data = ["State of the Union addresses", "Moby-Dick"]
        prompt = "My fellow citizens, the state of our Union" if is_eem else "My fellow citizens,"
        limits.append("It has met nothing but American political speeches and one novel.")
    card = checkpoint_card(
        CheckpointFacts(
            name=f"Quickstart {name}",
            kind="eem" if is_eem else "causal",
            model_type=run.config.model_type,
            num_parameters=run.model.num_parameters(),
            context=run.collator.max_length,
            code_size=run.config.code_size if is_eem else 0,
            code_bits=run.code_bits,
            held_out={"bits_per_byte": length.bits_per_byte, "cross_entropy": length.cross_entropy},
            meets_prefixes=not is_eem or run.collator.random_prefix_probability > 0,
            held_out_name=held_out_name,
            training={
                "steps": str(num_steps),
                "rows a step": str(run.rows_per_step),
                "tokens a row": str(run.collator.max_length),
                "learning rate": f"{arguments.learning_rate:g}",
                "GFLOPs a row": f"{flops / 1e9:.2f}",
                "training text, MB": f"{sum(run.train_rows['num_bytes']) / 1e6:.2f}",
            },
            train_data=train_data,
            prompt=prompt,
            licence="apache-2.0" if is_ours else data.licence,
            language="en" if is_ours else data.language,
            comparison=compressors,
            notes=[
                f"It codes windows of up to {run.collator.max_length} tokens one by one; the compressors get all "
                f"{length.num_bytes:,} bytes together."
            ],
            limits=limits,
            figures={"learning curves": "learning_curve.png"},
        )
    )
    return str(card)
