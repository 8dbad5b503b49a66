"""The host tier: one shared-memory arena and the slabs it is cut into."""

__all__: list[str] = []
