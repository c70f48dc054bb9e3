"""The words of the command line that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from bitbudget.data import DEMO_NAME
from bitbudget.errors import InputError
from bitbudget.report.failures import EXIT_CODES
from bitbudget.report.sizes import parse_size

KEPT = "16bit"
# \b: click keeps the lines of a paragraph that begins with it
EXIT_HELP = "\b\nExit codes:\n" + "\n".join(f"{code:>5}  {meaning}" for code, meaning in EXIT_CODES.items())


def _size(text: str | int) -> int:
    nbytes = parse_size(str(text))
    if nbytes is None:
        raise typer.BadParameter(f"{text!r} is no size. Write bytes, or a number with KB, MB, GB, KiB, MiB or GiB.")
    return nbytes


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bitbudget {version('bitbudget')}")
        raise typer.Exit
    return wanted


MODEL_HELP = f"Model folder, Hugging Face id, or `{DEMO_NAME}` (the packaged model)."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `quantize` wrote.", show_default=False)]
ChoiceText = Annotated[
    str | None,
    typer.Option(
        "--choice",
        metavar="CHOICE",
        help="One choice for all linears of the blocks, such as int4:g128, instead of a budget.",
        show_default=False,
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=_size,
        help="Budget for running: stored tensors, key-value cache at --context, activations, --reserve.",
        show_default=False,
    ),
]
Weights = Annotated[
    int | None, typer.Option(metavar="SIZE", parser=_size, help="Budget for all tensors.", show_default=False)
]
Disk = Annotated[
    int | None, typer.Option(metavar="SIZE", parser=_size, help="Budget for the weight files.", show_default=False)
]
Bits = Annotated[
    float | None, typer.Option(help="Budget: stored bits a weight, over all layers.", show_default=False)
]
CodeBits = Annotated[
    float | None,
    typer.Option(help="Budget: code bits a weight of the blocks' linears, as papers count.", show_default=False),
]
KvDtype = Annotated[
    str | None, typer.Option(help="fp16, bf16, fp32, fp8 or int8.", show_default="the model's own")
]
Reserve = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE", parser=_size, help="Memory that is left free.", show_default="0, on CUDA 600 MiB"
    ),
]
Method = Annotated[str, typer.Option(help="llm-mq, or llm-mq-paper for the paper's own setting.")]
EffortName = Annotated[str, typer.Option("--effort", metavar="fast|normal|best", help="How much to measure.")]
Widths = Annotated[
    str | None, typer.Option(metavar="BITS,…", help="Widths to choose from, 16 included.", show_default="the method's")
]
Groups = Annotated[
    str | None, typer.Option(metavar="SIZES", help="Group sizes to choose from.", show_default="the method's")
]
OutlierShares = Annotated[
    str | None,
    typer.Option(
        "--outliers",
        metavar="SHARES",
        help="Shares of outliers to choose from, such as 0,0.5%; auto: 0 and 0.1 to 2 %.",
        show_default="the method's",
    ),
]
RangeRule = Annotated[
    str | None,
    typer.Option("--range", metavar="minmax|clip", help="How ranges of groups are found.", show_default="the method's"),
]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder that keeps what was measured.", show_default="the user's cache"),
]
Scratch = Annotated[
    int, typer.Option(metavar="SIZE", parser=_size, help="What hidden states may take on the disk meanwhile.")
]
Kernels = Annotated[
    str | None,
    typer.Option(
        metavar="a16|a8|reference",
        help="Kernels on the CPU: activations of 15 or 8 bits, or decoded weights.",
        show_default="a16",
    ),
]
Choices = Annotated[
    list[str] | None,
    typer.Option(
        "--choice", metavar="CHOICE", help="A choice to forecast; repeat for more.", show_default="8 to 2 bits"
    ),
]
Context = Annotated[
    int | None, typer.Option(min=1, help="Tokens of the key-value cache.", show_default="the longest, up to 8192")
]
RunContext = Annotated[
    int | None, typer.Option(min=1, help="Tokens of prompt and text at most.", show_default="the checkpoint's")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.", show_default=False)]
Embedding = Annotated[str, typer.Option(metavar="CHOICE", help="How the embedding is stored; 16bit: as it is.")]
Head = Annotated[str, typer.Option(metavar="CHOICE", help="How the head is stored; 16bit: as it is.")]
TextFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text or JSONL file to measure on.", show_default="the packaged books"),
]
Against = Annotated[str | None, typer.Option(metavar="MODEL", help="The original, to compare with.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]", help="Where to compute.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along.")]
Plots = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for pictures (PNG).", show_default="no pictures")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ShardSize = Annotated[
    int, typer.Option(metavar="SIZE", parser=_size, help="Largest weight file.", show_default="5GB")
]
Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")]


def require_folder(folder: Path) -> None:
    """Raise InputError where there is no folder of that name."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}. This command takes one that `bitbudget quantize` wrote.")
