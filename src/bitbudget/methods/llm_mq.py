"""LLM-MQ: a bit-width for every layer under a memory budget, with sparse outliers.  Li et al., ENLSP workshop at NeurIPS 2023.

    min Σ_i Σ_b c_ib s_ib    s.t.    Σ_b c_ib = 1,    Σ_i Σ_b c_ib M(Q_b(W_i)) ≤ B,    c_ib ∈ {0, 1}          (eq. 3-5)
    s_ib = |g_iᵀ (W_i − Q_b(W_i))|                                                                            (eq. 2)

W_i: a linear; Q_b: round to nearest in groups of 128, after AWQ's scaling, the 0.5 % largest weights apart in fp16; M: bytes.

The page's defaults keep the problem and change three things that decide quality. s_ib is the KL divergence to second order,
½ E_d[(g_dᵀΔ)²] with labels drawn from the model (a mean gradient of a converged model is sampling noise; its square is what the
KL consists of). M is what lies on the disk, scales, zeros and CSR included. Groups, outliers and a searched range are offered as
choices of their own, so that bytes go where they help most. `LlmMq.paper()` is the paper's setting.
"""

from dataclasses import dataclass, replace

from bitbudget.errors import InputError
from bitbudget.methods.recipe import KEPT, Labels, Recipe
from bitbudget.storage import Choice

OUTLIER_CANDIDATES = ("0.1%", "0.25%", "0.5%", "1%", "2%")  # of `auto`
RANGES = ("minmax", "clip")
KEPT_BITS = 16
WIDE = 5  # from this many bits on neither outliers, small groups nor a searched range are worth their bytes and minutes


@dataclass(frozen=True)
class LlmMq:
    """bits (16: as it is), groups, ascending, and outliers (shares in percent; "0" for none) in the largest of them make the
    choices of the blocks' linears.

    tables: choices of embedding and head. range: the rule for groups of fewer than 5 bits. score, labels: see `Recipe`.
    reference: the choice at which scales are searched.
    """

    name: str = "llm-mq"
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 16)
    groups: tuple[int, ...] = (32, 64, 128)
    outliers: tuple[str, ...] = ("0", "0.5%")
    tables: tuple[str, ...] = ("int4:g64:range=clip", "int6:g128", "int8:g128")
    range: str = "clip"
    score: str = "fisher"
    labels: Labels = "sampled"
    scaling: bool = True
    reference: str = "int3:g128"

    @classmethod
    def paper(cls) -> "LlmMq":
        """2, 3 and 4 bits in groups of 128, 0.5 % outliers, minimum and maximum, |Σ gᵀΔ| with the text's labels."""
        return cls(
            "llm-mq-paper", (2, 3, 4), (128,), ("0.5%",), tables=(), range="minmax", score="first", labels="text"
        )

    def offering(self, bits: str | None, groups: str | None, outliers: str | None, range: str | None) -> "LlmMq":
        """The same method with other choices, each a list with commas; outliers `auto`: none, and 0.1 to 2 %.

        Raises InputError for words that name no choice.
        """
        if range not in (None, "", *RANGES):
            raise InputError(f"There is no range rule called {range!r}. Write one of {', '.join(RANGES)}.")
        shares = ("0", *OUTLIER_CANDIDATES) if outliers == "auto" else _words(outliers) or self.outliers
        try:
            changed = replace(
                self,
                bits=tuple(int(word) for word in _words(bits)) or self.bits,
                groups=tuple(sorted(int(word) for word in _words(groups))) or self.groups,
                outliers=tuple("0" if share in ("0", "0%") else share for share in shares),
                range=range or self.range,
            )
        except ValueError as error:
            raise InputError(f"Widths and groups are whole numbers with commas between them ({error}).") from error
        words = [f"int{bits}" for bits in changed.bits if bits != KEPT_BITS]
        words += [f"int4:g{group}" for group in changed.groups]
        words += [f"int4+outliers:{share}" for share in changed.outliers if share != "0"]
        for word in words:  # each by itself: not all of them meet in a choice
            Choice.parse(word)
        return changed

    def recipe(self) -> Recipe:
        return Recipe(
            method=self.name,
            choices=tuple(self._choices()),
            tables=self.tables,
            estimator=self.score,
            labels=self.labels,
            scaling=self.scaling,
            reference=self.reference,
            # A signed sum is small by chance: without this, 2 bits can look better than 4.
            order="raise" if self.score == "first" else "keep",
        )

    def _choices(self) -> list[str]:
        found = [KEPT] if KEPT_BITS in self.bits else []
        for bits in self.bits:
            if bits == KEPT_BITS:
                continue
            wide = bits >= WIDE
            for group in self.groups[-1:] if wide else self.groups:
                dense = f"int{bits}:g{group}" + ("" if wide or self.range == "minmax" else f":range={self.range}")
                # Small groups and outliers answer the same need: a few large weights in a group.
                shares = ("0",) if wide or group < self.groups[-1] else self.outliers
                found += [dense if share == "0" else f"{dense}+outliers:{share}" for share in shares]
        return found


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())
