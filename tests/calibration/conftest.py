"""Tokenizers to test with: the demo model's (no tokens before a text) and the same one with BOS and a chat template."""

import json
import shutil
from pathlib import Path

import pytest

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('no role ' ~ message.role) }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}"
)


@pytest.fixture(scope="session")
def tokenizer(demo_folder: Path):
    from bitbudget.calibration.tokenizer import Tokenizer

    return Tokenizer.open(demo_folder)


@pytest.fixture(scope="session")
def bos_folder(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that puts its id 0 before every text, as Llama's does, and has a chat template that writes it too."""
    folder = tmp_path_factory.mktemp("bos")
    shutil.copyfile(demo_folder / "config.json", folder / "config.json")
    rules = json.loads((demo_folder / "tokenizer.json").read_text(encoding="utf-8"))
    begin = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    rules["post_processor"]["single"] = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    rules["post_processor"]["special_tokens"] = {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    }
    (folder / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    settings = json.loads((demo_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def bos_tokenizer(bos_folder: Path):
    from bitbudget.calibration.tokenizer import Tokenizer

    return Tokenizer.open(bos_folder)
