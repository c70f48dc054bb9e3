"""Without bitbudget transformers must stop, not run with random weights; with it, in whatever order they are "
"imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

import bitbudget  # noqa: F401 -- registers
from bitbudget.errors import InputError
from bitbudget.integrations.loading import load
from bitbudget.integrations.on_import import AfterImport, register_when_imported
from bitbudget.integrations.transformers import BitbudgetConfig, is_registered, register
from integrations.written import read_tensors, write_native, write_tensors
from zoo import make_model

LINEAR = {"linear": "int4"}
CASES = {
    "linears": ("llama", LINEAR),
    "head": ("llama", {"head": "int8"}),
    "embedding": ("llama", {"embedding": "int8"}),
    "one linear": ("llama", {"model.layers.1.mlp.up_proj": "int3"}),
    "only the tied matrix": ("llama_tied", {"tied": "int8"}),
    "only the tied matrix of Gemma": ("gemma3", {"tied": "int8"}),
    "Conv1D": ("gpt2", LINEAR),
    "Conv1D without prefix": ("gpt2 unprefixed", LINEAR),
    "only the tied matrix without prefix": ("gpt2 unprefixed", {"tied": "int8"}),
    "fused linears": ("phi3", LINEAR),
    "beside experts": ("mixtral", LINEAR),
}
# Tells of every folder in argv which exception loading it ends with.
WITHOUT_US = """
import json, sys
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        found[folder] = None
    except Exception as error:
        found[folder] = type(error).__name__
assert not any(name.partition(".")[0] == "bitbudget" for name in sys.modules)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished checkpoint of every case."""
    root = tmp_path_factory.mktemp("cases")
    made = {}
    for index, (case, (name, choices)) in enumerate(CASES.items()):
        source = make_model(name.split()[0], root / f"{index}s")
        if "unprefixed" in name:
            tensors = {key.removeprefix("transformer."): tensor for key, tensor in read_tensors(source).items()}
            write_tensors(source, tensors)
        made[case] = root / f"{index}"
        assert write_native(source, made[case], choices)
    return made


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_transformers_alone_refuses_every_checkpoint(folders: dict[str, Path]) -> None:
    found = json.loads(python(WITHOUT_US, *map(str, folders.values())))
    assert {case: found[str(folder)] for case, folder in folders.items()} == dict.fromkeys(CASES, "RuntimeError")


@pytest.mark.parametrize("case", CASES)
def test_the_same_after_the_registration_was_removed(
    case: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "bitbudget")
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "bitbudget")
    for auto_class in (AutoModelForCausalLM, AutoModel) if case != "head" else (AutoModelForCausalLM,):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            auto_class.from_pretrained(folders[case])


def test_load_registers_again(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "bitbudget")
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, "bitbudget")
    assert load(folders["linears"]).is_quantized
    assert is_registered()


def test_a_name_that_somebody_else_took(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "bitbudget", AUTO_QUANTIZER_MAPPING["gptq"])
    with pytest.raises(InputError, match="taken by"):
        load(folders["linears"])
    with pytest.warns(RuntimeWarning, match="could not register"):
        register_when_imported()


def test_registering_twice_changes_nothing() -> None:
    register()
    register()
    register_when_imported()
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["bitbudget"] is BitbudgetConfig
    assert not any(isinstance(finder, AfterImport) for finder in sys.meta_path)


IN_THIS_ORDER = """
import importlib.util, sys
import bitbudget, bitbudget.integrations.on_import as hook
assert not {"torch", "transformers"} & set(sys.modules)
hook.register_when_imported()
waiting = [finder for finder in sys.meta_path if isinstance(finder, hook.AfterImport)]
assert len(waiting) == 1
assert importlib.util.find_spec("transformers.quantizers.auto") is not None  # asked for, not imported
from transformers import AutoModelForCausalLM
import transformers.quantizers.auto as registry
assert "bitbudget" in registry.AUTO_QUANTIZER_MAPPING and "bitbudget" in registry.AUTO_QUANTIZATION_CONFIG_MAPPING
assert waiting[0] not in sys.meta_path
assert "bitbudget.integrations.placement" not in sys.modules  # nothing heavy while transformers is being imported
assert registry.__spec__.loader.get_source(registry.__name__)
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""
BROKEN = """
import sys, warnings
import bitbudget
sys.modules["bitbudget.integrations.transformers"] = None  # importing it now fails
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from transformers import AutoModelForCausalLM
    import transformers.quantizers.auto as registry
assert "bitbudget" not in registry.AUTO_QUANTIZER_MAPPING
assert any("bitbudget could not register" in str(warning.message) for warning in caught)
"""


def test_bitbudget_imported_before_transformers(folders: dict[str, Path]) -> None:
    python(IN_THIS_ORDER, str(folders["linears"]))


def test_transformers_imports_even_if_we_cannot_register() -> None:
    python(BROKEN)
