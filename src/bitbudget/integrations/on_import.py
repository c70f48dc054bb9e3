"""Makes bitbudget known to transformers the moment both are imported, whichever comes first.

transformers discovers no plug-ins: a quantization method exists once somebody has called its `register_…` functions. So
`import bitbudget` must do that, but must not import transformers, which takes seconds while `bitbudget --help` has half
a second. Where transformers' registry is there already, we register at once; otherwise a finder waits in
`sys.meta_path`, lets the registry be imported by whoever finds it, registers after it has run and removes itself
(https://docs.python.org/3/reference/import.html#the-meta-path).
"""

import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRY = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register now if transformers' registry is imported, else as soon as it is. Calling it again changes nothing."""
    if REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImport())


class AfterImport:
    """A finder that finds nothing by itself: it asks the others and adds a step to the loader they give."""

    def find_spec(self, name: str, path: Iterable[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The others' spec of the registry; None for every other module."""
        if name != REGISTRY:
            return None
        spec = self._found_by_others(name, path, target)
        if spec is not None and spec.loader is not None:
            self._add_step(spec.loader)
        return spec

    def _found_by_others(self, name: str, path: Iterable[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                return spec
        return None

    def _add_step(self, loader: object) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            # Only now: a spec may be asked for without an import, and an import that failed may be tried again.
            with suppress(ValueError):
                sys.meta_path.remove(self)
            _register()

        # On the instance, so that the loader stays what it is to everybody else. One that takes no attributes is left
        # alone; `bitbudget.load` registers by itself.
        with suppress(AttributeError):
            loader.exec_module = execute_and_register  # type: ignore[attr-defined]


def _register() -> None:
    try:
        from bitbudget.integrations.transformers import register

        register()
    # Whatever goes wrong here must not break somebody's `import transformers`; loading one of our checkpoints then
    # fails with its own error.
    except Exception as error:
        warnings.warn(f"bitbudget could not register with transformers: {error!r}", RuntimeWarning, stacklevel=2)
