"""The program that the commands belong to."""

import typer

from bitbudget.cli import options

app = typer.Typer(
    name="bitbudget",
    help="Bytes in, verified checkpoint out: quantizes language models under a memory budget.",
    epilog=options.EXIT_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: three columns in boxes leave no room for words on 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(version: options.Version = False) -> None:
    pass
