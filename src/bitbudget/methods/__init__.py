"""One page per published method. A page composes shared parts into a recipe."""

from collections.abc import Mapping
from types import MappingProxyType

from bitbudget.methods.llm_mq import LlmMq
from bitbudget.methods.recipe import Recipe

__all__ = ["METHODS", "LlmMq", "Recipe"]

METHODS: Mapping[str, LlmMq] = MappingProxyType({"llm-mq": LlmMq(), "llm-mq-paper": LlmMq.paper()})
