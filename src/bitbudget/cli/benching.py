"""The command that times a checkpoint's layers: bench."""

from typing import Annotated

import typer

from bitbudget.cli import options
from bitbudget.cli.app import app
from bitbudget.report.bench import show_bench
from bitbudget.report.session import session


@app.command(epilog=options.EXIT_HELP)
def bench(  # noqa: PLR0913 -- one parameter an option
    folder: options.Folder,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that a product takes at once.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="all cores")] = None,
    kernels: options.Kernels = None,
    dtype: Annotated[str, typer.Option(help="Of the activations: float32, bfloat16 or float16.")] = "float32",
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Time the layers of a checkpoint on this CPU.

    For every shape and choice, and for all layers: time of a product, bytes a second, their share of what the memory gives
    to the same threads, and bytes held.
    """
    with session(as_json, debug) as running:
        options.require_folder(folder)
        running.load(kernels=True)
        import torch

        from bitbudget.integrations.loading import load
        from bitbudget.pipeline import bench as work

        if threads:
            torch.set_num_threads(threads)
        with running.stage("load the checkpoint"):
            model = load(folder, trust_remote_code=trust_remote_code, kernels=kernels)
        with running.stage("time its layers"):
            found = work.bench(model, tokens, work.activation_dtype(dtype)).to_dict()
        running.show({"folder": str(folder), **found}, lambda: show_bench(running.results, found))
