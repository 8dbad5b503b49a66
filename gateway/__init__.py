"""The gateway: lets callers in by API key, and speaks OpenAI's HTTP and `kvtier.v1` to them.

Goals: a client that talks to OpenAI or DeepSeek works unchanged; who asks, and who pays, follows
from the key alone; every refusal has the shape and status that such clients expect; a caller that
goes away frees what it held at once.

Non-goals: it tokenizes nothing and meters nothing (workers do), keeps no prompt and no answer, and
decides no price. It does without torch.
"""

__all__: list[str] = []
