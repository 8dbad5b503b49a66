"""`kvtier bench`: what the service's disk side does on this machine, and how soon it is ready."""

__all__: list[str] = []
