"""bitbudget: bytes in, verified checkpoint out.

    import bitbudget

    bitbudget.forecast("demo")
    bitbudget.quantize("demo", bitbudget.Budget(weights=2_500_000), "out")
    bitbudget.verify("out", against="demo").passed
    bitbudget.evaluate("out", "text.txt", against="demo").kl
    model = bitbudget.load("out")  # or transformers.AutoModelForCausalLM.from_pretrained("out")

Importing the package lets transformers load its checkpoints. It loads neither torch nor transformers itself.
"""

from typing import TYPE_CHECKING, Any

from bitbudget.integrations.on_import import register_when_imported

if TYPE_CHECKING:
    from bitbudget.integrations.loading import load
    from bitbudget.pipeline.api import evaluate, plan, quantize, verify
    from bitbudget.pipeline.budgets import Budget
    from bitbudget.pipeline.by_budget import Options
    from bitbudget.pipeline.forecast import forecast

__all__ = ["Budget", "Options", "evaluate", "forecast", "load", "plan", "quantize", "verify"]

register_when_imported()


def __getattr__(name: str) -> Any:
    """Each public name is imported when it is first used."""
    if name == "forecast":
        from bitbudget.pipeline.forecast import forecast

        return forecast
    if name == "load":
        from bitbudget.integrations.loading import load

        return load
    if name == "Budget":
        from bitbudget.pipeline.budgets import Budget

        return Budget
    if name == "Options":
        from bitbudget.pipeline.by_budget import Options

        return Options
    if name in __all__:
        from bitbudget.pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
