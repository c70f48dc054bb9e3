"""Zoo models, each written once per test run, and what several files here do with them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config
from transformers.utils import logging

from zoo import ARCHITECTURES, VOCABULARY, make_model

logging.disable_progress_bar()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`zoo(name, **options)` is the folder of that model; folders are shared, so tests that change one copy it."""
    written: dict[tuple, Path] = {}

    def folder(name: str, **options: object) -> Path:
        key = (name, *sorted(options.items(), key=str))
        if key not in written:
            written[key] = make_model(name, tmp_path_factory.mktemp(name), **options)
        return written[key]

    return folder


@pytest.fixture
def edited(zoo: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`edited(name, tensors=…, config=…)` is a copy whose tensors and config went through these functions."""

    def folder(name: str, tensors: Callable = dict, config: Callable = dict) -> Path:
        source = zoo(name)
        raw = json.loads((source / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config(raw)))
        changed = tensors(load_file(source / "model.safetensors"))
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return folder


@pytest.fixture(scope="session")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 that also sees: its language model lies beside a vision tower of as many blocks."""
    vision = {"hidden_size": 48, "intermediate_size": 70, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    text = ARCHITECTURES["gemma3"](VOCABULARY).to_dict() | {"num_hidden_layers": 3}
    text["layer_types"] = text["layer_types"][:3]
    tokens = {"image_token_index": 500, "boi_token_index": 501, "eoi_token_index": 502}
    config = Gemma3Config(text_config=text, vision_config=vision | {"num_hidden_layers": 3}, **tokens)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval()
    folder = tmp_path_factory.mktemp("vision")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sequences() -> list[Tensor]:
    """Token ids of several lengths, two of them equal; the window of the zoo is 12."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in (5, 33, 33, 1, 47)]


@pytest.fixture(scope="session")
def whole_logits() -> Callable[..., list[Tensor]]:
    """Logits of the whole model as transformers loads and runs it, one sequence at a time."""

    def logits(
        folder: Path, sequences: list[Tensor], dtype: torch.dtype = torch.float32, **options: str
    ) -> list[Tensor]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        with torch.no_grad():
            return [model(sequence[None], use_cache=False).logits[0] for sequence in sequences]

    return logits
