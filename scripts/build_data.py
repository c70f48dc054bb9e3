"""Builds src/bitbudget/data: the demo model's files and the default text, always the same bytes from the same sources.

    python scripts/build_data.py ../shared

The texts are evenly spread over the source files, so that many books are represented; the model is copied as it is.
"""

import json
import shutil
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "src" / "bitbudget" / "data"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
)
PASSAGES = (("calibration.jsonl", 110), ("validation.jsonl", 60))


def evenly(lines: list[str], count: int) -> list[str]:
    """`count` of the different lines, at equal distances."""
    different = list(dict.fromkeys(lines))
    return [different[index * len(different) // count] for index in range(count)]


def excerpt(folder: Path) -> str:
    """The default text: JSON lines that hold nothing but `text`."""
    passages = []
    for name, count in PASSAGES:
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        passages += evenly([json.loads(line)["text"] for line in lines if line], count)
    return "".join(json.dumps({"text": passage}, ensure_ascii=False) + "\n" for passage in passages)


def build(shared: Path, target: Path) -> None:
    """Writes the packaged data from `shared` (its folders `models` and `text`) into `target`."""
    model = target / "books-6m"
    model.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(shared / "models" / "books-6m" / name, model / name)
    (target / "books.jsonl").write_text(excerpt(shared / "text"), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    build(Path(sys.argv[1]), DATA)
