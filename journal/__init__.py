"""The journal's room: what must not be lost on its way to billing, on the disk and delivered.

A journal says what began and how it ended; an outbox reads the ends back, and a delivery carries
them to a service at least once. What begins and ends is its user's: a `Dialect` spells it.
"""

__all__: list[str] = []
