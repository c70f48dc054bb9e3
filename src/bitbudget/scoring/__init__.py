"""From gradients and rounding errors to scores: predicted KL divergence in nats per token."""

from bitbudget.scoring.composite import composite
from bitbudget.scoring.contraction import contract, contract_rows
from bitbudget.scoring.estimators import ESTIMATORS, Estimate, Estimator

__all__ = ["ESTIMATORS", "Estimate", "Estimator", "composite", "contract", "contract_rows"]
