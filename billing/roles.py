"""The one table: calls of billing -> who may make them. Pure data.

A call that has no row is refused to everybody; a test holds that every call has one.
"""

from collections.abc import Mapping

from kvtier.access import Rule, rules
from kvtier.principals import EVERY_ROLE, Role

__all__ = ["RULES"]

_FIGURES = Rule(frozenset({Role.TENANT, Role.OPERATOR, Role.BILLER, Role.AUDITOR}))
"""A tenant asks for its own alone: `own_tenant_only`."""

_PROOF = Rule(frozenset({Role.OPERATOR, Role.BILLER, Role.AUDITOR}))

_RECEIPTS = rules("kvtier.v1.ReceiptService", GetReceipt=_FIGURES)

_USAGE = rules(
    "kvtier.v1.UsageService",
    RecordUsage=Rule(frozenset({Role.ENGINE})),
    RateUsage=Rule(EVERY_ROLE),
    GetUsage=_FIGURES,
    GetInvoice=_FIGURES,
    ListCharges=_FIGURES,
    FindUsageEvents=_FIGURES,
    CorrectUsage=Rule(frozenset({Role.OPERATOR})),
    VerifyLedger=_PROOF,
    GetCheckpoint=_PROOF,
    GetLedgerKeys=Rule(EVERY_ROLE),
    RotateLedgerKey=Rule(frozenset({Role.OPERATOR})),
    RerateUsage=Rule(frozenset({Role.OPERATOR, Role.BILLER})),
    GetPriceBook=Rule(EVERY_ROLE),
)

_BUDGETS = rules(
    "kvtier.v1.BudgetService",
    FundBalance=Rule(frozenset({Role.OPERATOR, Role.BILLER})),
    GetBalance=Rule(_FIGURES.roles | {Role.GATEWAY}),
    ReserveBudget=Rule(frozenset({Role.ENGINE})),
    ReleaseBudget=Rule(frozenset({Role.ENGINE})),
    SetBudget=Rule(frozenset({Role.OPERATOR, Role.BILLER})),
    ListBudgets=_FIGURES,
    ListBudgetAlerts=_FIGURES,
)

_ATTESTATIONS = rules(
    "kvtier.v1.AttestationService",
    # No engine may vouch for its own figures.
    RecordAttestations=Rule(frozenset({Role.CACHE})),
    ReconcileUsage=_PROOF,
)

RULES: Mapping[str, Rule] = {**_USAGE, **_BUDGETS, **_RECEIPTS, **_ATTESTATIONS}
