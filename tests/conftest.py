"""What every test shares: no network, one hypothesis profile, and the rules by which marked tests run or are skipped.

The checks of shapes and types are switched on in pyproject.toml (`--jaxtyping-packages`); tests/test_floors.py shows
that they are on.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A test that reaches for a model hub must fail here as it would on a machine without network.
os.environ["HF_HUB_OFFLINE"] = "1"
# As the command `bitbudget` sets it: the same product has the same bits wherever its matrices lie, also on AMD's processors.
os.environ.setdefault("MKL_CBWR", "AUTO")
# The tokenizers library warns when a process that used its threads is forked.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SHARED = Path(__file__).resolve().parents[2] / "shared"

# No deadline: the first example of a property pays for imports, and machines under load are slow.
settings.register_profile("bitbudget", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("bitbudget")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take more than a minute")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a marked test whose needs are not met on this machine."""
    if item.get_closest_marker("slow") and not item.config.getoption("--slow"):
        pytest.skip("slow: runs only with --slow")
    if item.get_closest_marker("shared") and not SHARED.is_dir():
        pytest.skip(f"shared: {SHARED} is absent")
    if item.get_closest_marker("gpu") and not cuda_is_available():
        pytest.skip("gpu: no CUDA device")
    for marker in item.iter_markers("peer"):
        missing = [module for module in marker.args if importlib.util.find_spec(module) is None]
        if missing:
            pytest.skip(f"peer: {', '.join(missing)} is not installed")


def cuda_is_available() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Matrices are small here: one thread is far faster than several that wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Measurements of tests never meet those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BITBUDGET_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder beside the checkout with models and texts; a test that asks for it carries the marker `shared`."""
    return SHARED


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The packaged demo model."""
    from bitbudget.data import demo_model_folder

    return demo_model_folder()


@pytest.fixture
def reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are loaded with the kernels that decode weights, for tests that compare with decoded weights."""
    monkeypatch.setenv("BITBUDGET_KERNELS", "reference")
