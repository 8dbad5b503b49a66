"""Metering of storage: what is kept of each organisation and model in each tier, and for how long.

    the owner table moves blocks --> RowMeter --> StorageMeter --> an hour's use, or one so far
    StorageWitness --> the attestation journal --> billing, which charges it

Goals: exact sums, at most a minute lost to a kill and nothing twice. Non-goals: prices; blocks that
nobody owns; the shared tier, which no service alone fills. Event loop only.
"""

__all__: list[str] = []
