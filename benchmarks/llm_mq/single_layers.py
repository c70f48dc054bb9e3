"""The ground truth for scores: what storing one layer alone really costs, for every layer and choice.

    python benchmarks/llm_mq/single_layers.py --model demo --choices int2:g128,int3:g128 --sequences 96 --length 256

Text: passages of `../shared` that the packaged text does not hold, or `--text FILE`. Every layer is stored by
round-to-nearest, embedding and head too. Writes `results/single_layers_MODEL.json`: KL(original ‖ changed) in nats per
token with its standard error over documents. Runs with other settings that stand there are kept; one that was broken off
goes on.
"""

import argparse
import json
import sys
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measured import Loss, Measured, Stored, by_nearest
from opening import described, opened
from texts import unused_documents, windows

from bitbudget.calibration.documents import read_text
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, fingerprint
from bitbudget.models.source import SourceModel

RESULTS = Path(__file__).parent / "results"


def single_layers(
    source: SourceModel,
    choices: Sequence[str],
    sequences: Sequence[TokenSequence],
    stored: Stored = by_nearest,
    known: Container[tuple[str, str]] = (),
) -> Iterator[tuple[str, str, Loss]]:
    """(layer, choice, measured loss) of every layer and choice that is not known yet, in the order of the layers."""
    measured = Measured(source, sequences, stored)
    for name in measured.layers:
        for choice in choices:
            if (name, choice) not in known:
                yield name, choice, measured.layer_kl(name, choice)


def entry(loss: Loss) -> dict[str, float]:
    """What a results file says of a loss: seven digits are far more than its standard error allows."""
    return {"kl": float(f"{loss.kl:.7g}"), "se": float(f"{loss.se:.3g}")}


def settings(sequences: Sequence[TokenSequence], asked: argparse.Namespace) -> dict[str, Any]:
    """What a run was made of."""
    return {
        "choices": asked.choices.split(","),
        "text": Path(asked.text).name if asked.text else "unused passages of validation.jsonl",
        "sequences": len(sequences),
        "length": asked.length,
        "scored": sum(sequence.scored for sequence in sequences),
        "documents": len({sequence.document for sequence in sequences}),
        "sequences_sha256": fingerprint(sequences),
        "rounding": "nearest",
        "torch": torch.__version__,
    }


def earlier(file: Path, model: dict[str, Any], run: dict[str, Any], key: str) -> tuple[list[Any], dict[str, Any]]:
    """From a results file of the same model: the runs with other settings, and the one with these (or `run` itself)."""
    found = json.loads(file.read_text()) if file.exists() else {}
    runs = found.get("runs", []) if found.get("model") == model else []
    alike = [{**old, key: None} == {**run, key: None} for old in runs]
    same = [old for old, equal in zip(runs, alike, strict=True) if equal]
    return [old for old, equal in zip(runs, alike, strict=True) if not equal], same[0] if same else run


def keep(file: Path, model: dict[str, Any], run: dict[str, Any], key: str) -> None:
    """Puts a run into a results file, in place of an earlier one with the same settings."""
    file.parent.mkdir(exist_ok=True)
    others, _ = earlier(file, model, run, key)
    file.write_text(json.dumps({"model": model, "runs": [*others, run]}, indent=1) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="demo", help="demo, twin, or a folder")
    options.add_argument("--name", help="what the results call the model; by default the folder's name")
    options.add_argument("--choices", default="int2:g128,int3:g128,int4:g128")
    options.add_argument("--sequences", type=int, default=1024)
    options.add_argument("--length", type=int, default=128)
    options.add_argument("--text", help="a file; default: the unused passages")
    options.add_argument("--threads", type=int, default=1)
    return options


def sequences_of(source: SourceModel, asked: argparse.Namespace) -> tuple[TokenSequence, ...]:
    """The windows that the options ask for."""
    tokenizer = Tokenizer.open(source.folder)
    documents = read_text(asked.text, tokenizer).documents if asked.text else unused_documents()
    return windows(documents, tokenizer, asked.sequences, asked.length)


def main() -> None:
    asked = parser(__doc__).parse_args()
    torch.set_num_threads(asked.threads)
    file = RESULTS / f"single_layers_{asked.name or Path(asked.model).name}.json"
    started = time.perf_counter()
    with opened(asked.model) as source:
        sequences = sequences_of(source, asked)
        model = described(source)
        _, run = earlier(file, model, {**settings(sequences, asked), "layers": {}}, "layers")
        known = {(name, choice) for name, losses in run["layers"].items() for choice in losses}
        for name, choice, loss in single_layers(source, run["choices"], sequences, known=known):
            run["layers"].setdefault(name, {})[choice] = entry(loss)
            keep(file, model, run, "layers")
            print(
                f"{time.perf_counter() - started:6.0f} s  {name}  {choice}  {loss.kl:.3e} ± {loss.se:.1e}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
