"""Commands on models and checkpoints: forecast, verify, evaluate, inspect, run, demo."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bitbudget.cli import options
from bitbudget.cli.app import app
from bitbudget.pipeline.record import read_record
from bitbudget.report.checkpoint import show_inspection
from bitbudget.report.demo import show_demo
from bitbudget.report.forecast import show_forecast
from bitbudget.report.measurement import show_measurement, show_verification
from bitbudget.report.plots import save_plots
from bitbudget.report.run import run_lines
from bitbudget.report.session import session


@app.command(epilog=options.EXIT_HELP)
def forecast(  # noqa: PLR0913 -- one parameter an option
    model: options.Model,
    choice: options.Choices = None,
    embedding: options.Embedding = options.KEPT,
    head: options.Head = options.KEPT,
    context: options.Context = None,
    kv_dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32, fp8 or int8.")] = "fp16",
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Measure this machine, to forecast times.")] = True,
    effort: Annotated[
        str | None,
        typer.Option(metavar="fast|normal|best", help="Forecast planning for a budget too.", show_default=False),
    ] = None,
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Tell what quantizing a model would give and take.

    From config and file headers only: bytes of every choice (exact), key-value cache, what stays 16-bit and why, and
    estimates of memory, disk and time.
    """
    with session(as_json, debug) as running:
        running.load()
        from bitbudget.pipeline import forecast as work

        with running.stage("read headers, measure this machine"):
            found = work.forecast(
                model,
                choices=tuple(choice or work.DEFAULT_CHOICES),
                embedding=embedding,
                head=head,
                context=context,
                kv_dtype=kv_dtype,
                device=device,
                probe=probe,
                effort=effort,
                trust_remote_code=trust_remote_code,
            ).to_dict()
        running.show({"model": model, **found}, lambda: show_forecast(running.results, model, found))


@app.command(epilog=options.EXIT_HELP)
def verify(  # noqa: PLR0913 -- one parameter an option
    folder: options.Folder,
    against: options.Against = None,
    text: options.TextFile = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to measure on.")] = 4096,
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Check a finished checkpoint; exits with 5 if it fails.

    Every tensor, hash, scale and byte count is checked, then perplexity is measured; --against adds the original's
    tensors and the KL divergence from it.
    """
    with session(as_json, debug) as running:
        options.require_folder(folder)
        running.load()
        from bitbudget.pipeline import api

        result = api.verify(
            folder,
            against,
            text=text,
            device=device,
            tokens=tokens,
            trust_remote_code=trust_remote_code,
            progress=running.progress,
        )
        found = result.to_dict()
        running.show({"folder": str(folder), **found}, lambda: show_verification(running.results, found))
        if not result.passed:
            raise typer.Exit(5)


@app.command(epilog=options.EXIT_HELP)
def evaluate(  # noqa: PLR0913 -- one parameter an option
    folder: options.Folder,
    text: Annotated[Path, typer.Option(metavar="FILE", help="Text or JSONL file.", show_default=False)],
    against: options.Against = None,
    window: Annotated[int, typer.Option(min=4, help="Tokens a window, at most the model's context.")] = 2048,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window.", show_default="the window")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Tokens to measure on.", show_default="all")] = None,
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure perplexity and KL divergence on a text.

    KL needs --against, the original. The whole file counts, unless the checkpoint was made with it: then only the part
    kept for evaluation.
    """
    with session(as_json, debug) as running:
        running.load()
        from bitbudget.pipeline.api import open_source
        from bitbudget.pipeline.progress import Run
        from bitbudget.pipeline.texts import Cut
        from bitbudget.pipeline.verify import evaluate_folder

        original = open_source(against, trust_remote_code) if against else None
        how = Run(device, running.progress, trust_remote_code)
        measured, sample = evaluate_folder(folder, text, original, how, Cut(window, stride, tokens))
        found, where = measured.to_dict(), f"{sample.text.name}, {sample.part.name}"
        running.show(
            {"folder": str(folder), "text": {"name": sample.text.name} | sample.to_dict(), "measurement": found},
            lambda: show_measurement(running.results, found, where),
        )


@app.command(epilog=options.EXIT_HELP)
def inspect(
    folder: options.Folder,
    every_layer: Annotated[bool, typer.Option("--layers", help="A row for every layer.")] = False,
    plots: options.Plots = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Show what a checkpoint holds.

    Layers, choices and bytes, bits of every block and layer, what was kept and why, verification, provenance.
    """
    with session(as_json, debug) as running:
        record, _ = read_record(folder)
        found = {"folder": str(folder), **record}
        if plots is not None:
            found["plots"] = [str(path) for path in _plotted(plots, folder, record)]
        running.show(found, lambda: show_inspection(running.results, folder, record, every_layer))
        for path in found.get("plots", []):
            running.note(f"Drawn: {path}")


@app.command(epilog=options.EXIT_HELP)
def run(  # noqa: PLR0913 -- one parameter an option
    folder: options.Folder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model continues.", show_default=False)],
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as plain text, without chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the most likely token; above, tokens are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    context: options.RunContext = None,
    dtype: Annotated[str, typer.Option(help="Of what is not quantized: auto, or float32 as in verify.")] = "auto",
    kernels: options.Kernels = None,
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Let a checkpoint continue a prompt.

    Through the model's chat template if it has one. Counts, speed and memory, promised and measured, go to stderr.
    """
    with session(as_json, debug) as running:
        options.require_folder(folder)
        running.load(kernels=True)
        from bitbudget.integrations.loading import load
        from bitbudget.pipeline.generate import Sampling
        from bitbudget.pipeline.run import Runnable

        def loaded(dtype: str) -> Any:
            with running.stage("load the checkpoint"):
                return load(folder, dtype, trust_remote_code=trust_remote_code, kernels=kernels)

        opened = Runnable.open(folder, device, dtype, context, trust_remote_code, kernels)
        ids, chat = opened.ids(prompt, raw)
        if not chat and not raw:
            running.note("The tokenizer has no chat template: the prompt is continued as plain text.")
        made, memory = opened.write(loaded, ids, Sampling(max_new_tokens, temperature, seed), running.stream)
        found = {"folder": str(folder), "chat": chat, **made.to_dict(), "memory": memory.to_dict()}
        running.show(found, lambda: running.stream("\n"))
        running.note(run_lines(found))


@app.command(epilog=options.EXIT_HELP)
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder that keeps the checkpoints.", show_default="none")
    ] = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Try everything on the packaged model.

    Forecasts, quantizes by 8, 6, 5, 4, 3 and 2 bits, verifies each checkpoint and compares them in a table.
    """
    with session(as_json, debug) as running:
        running.load()
        from tempfile import TemporaryDirectory

        from bitbudget.pipeline.demo import run_demo

        with TemporaryDirectory(prefix="bitbudget-demo-") as scratch:
            found = run_demo(output or Path(scratch), device=device, progress=running.progress).to_dict()
        running.show(found, lambda: show_demo(running.results, found, str(output) if output else None))


def _plotted(directory: Path, folder: Path, record: dict[str, Any]) -> list[Path]:
    from bitbudget.pipeline.plans import read_plan

    title = f"{record['source']['name']}, {record['output']['settings']['method']}"
    return save_plots(directory, record["output"]["layers"], read_plan(folder), record.get("guard"), title)

