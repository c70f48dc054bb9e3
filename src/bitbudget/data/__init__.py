"""What the package carries with it: the demo model and the default text, so that everything runs without a network.

Both are public domain or CC0; the file NOTICE says where they come from, `scripts/build_data.py` how they were made.
"""

from importlib.resources import files
from pathlib import Path

DEMO_NAME = "demo"
DEFAULT_TEXT_NAME = "books (packaged)"


def demo_model_folder() -> Path:
    """The folder of the packaged model (5.8 M parameters, Llama architecture, bf16), complete with its tokenizer."""
    return _packaged("books-6m")


def default_text_file() -> Path:
    """The packaged text: one passage of a public-domain book a line, `{"text": ...}`."""
    return _packaged("books.jsonl")


def resolve_model(name: str) -> str:
    """The model a user means: `demo` is the packaged one everywhere, anything else stays as it was given.

    A local folder called demo is meant only when it is written as a path (`./demo`), so that the same command means the
    same model in every working directory.
    """
    return str(demo_model_folder()) if name == DEMO_NAME else name


def _packaged(name: str) -> Path:
    return Path(str(files(__name__) / name))
