"""The command line: which commands and options there are.

The work is done in `pipeline` and `allocation`, the text made in `report`. Whatever loads torch is imported inside the commands, so
that `--help` answers at once.
"""

import os

from bitbudget.cli import benching as benching  # defines its command
from bitbudget.cli import checkpoints as checkpoints  # defines its commands
from bitbudget.cli import plans as plans  # likewise
from bitbudget.cli import quantizing as quantizing  # likewise
from bitbudget.cli.app import app as app


def main() -> None:
    """The command `bitbudget`."""
    # Before torch is loaded: on AMD's processors MKL lets the last bits of a product depend on where matrices lie in memory, and
    # two runs would not give the same bytes. The setting costs nothing that could be measured.
    os.environ.setdefault("MKL_CBWR", "AUTO")
    app(prog_name="bitbudget")
