"""What `kvtier bench gateway` measures with: a scripted worker, and a client of bare sockets."""

__all__: list[str] = []
