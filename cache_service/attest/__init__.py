"""What the service attests: what each lease served, and of what it cannot say so.

    leases --> Witness (event loop) --each tick--> journal --> outbox --> billing, at least once

Off where no billing address is set: then nothing here is built.
"""

__all__: list[str] = []
