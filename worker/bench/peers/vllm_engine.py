"""vLLM, stepped by hand, so that it is seen when each token comes.

    argv: JSON of model, device, dtype, context_tokens, requests, cached_tokens, threads
    out:  {"ready": version}  or  {"absent": why}
    in:   {"prompts": [[id, ...], ...], "tokens": count}
    out:  {"came": [[seconds, ...], ...]}          of each prompt's tokens, from the asking on

Prefix caching is on, sampling greedy; otherwise as it is installed. Its KV is in the checkpoint's
type like ours. Ends when standard input does. Standard output is for answers alone. Runs under
another interpreter: of this project it sees `worker.bench.peers`. One thread, beside vLLM's own.
"""

import json
import os
import sys
import time
from typing import Any

__all__: list[str] = []

_GPU_SHARE = 0.35
"""Of a GPU's memory that it may have: ours has the same model beside it."""


def main() -> None:
    """Entry of the process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    terms = json.loads(sys.argv[1])
    try:
        engine, version = _engine(terms)
    except ImportError as error:
        print(json.dumps({"absent": f"not installed: {error}"}), file=answers)
        return
    print(json.dumps({"ready": version}), file=answers)
    asked = 0
    for line in sys.stdin:
        wanted = json.loads(line)
        came = _ask(engine, wanted["prompts"], wanted["tokens"], asked)
        asked += len(came)
        print(json.dumps({"came": came}), file=answers)


def _engine(terms: dict[str, Any]) -> tuple[Any, str]:
    settings: dict[str, Any] = {"gpu_memory_utilization": _GPU_SHARE}
    if terms["device"] == "cpu":
        settings = {}
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_kv_gibibytes(terms)))
        if terms["threads"]:
            cores = sorted(os.sched_getaffinity(0))[: terms["threads"]]
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    import vllm

    engine = vllm.LLM(
        model=terms["model"],
        dtype=terms["dtype"],
        max_model_len=terms["context_tokens"],
        max_num_seqs=max(16, terms["requests"]),
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        **settings,
    ).llm_engine
    return engine, vllm.__version__


def _kv_gibibytes(terms: dict[str, Any]) -> int:
    """Room for the tokens that are asked about, in 32 bits a number at most."""
    with open(os.path.join(terms["model"], "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token_bytes = 2 * 4 * config["num_hidden_layers"] * heads * width
    size: int = terms["cached_tokens"] * token_bytes
    return 1 + -(-size // 2**30)


def _ask(
    engine: Any, prompts: list[list[int]], token_count: int, first_name: int
) -> list[list[float]]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(
        temperature=0.0, max_tokens=token_count, ignore_eos=True, detokenize=False
    )
    came: dict[str, list[float]] = {str(first_name + i): [] for i in range(len(prompts))}
    began = time.perf_counter()
    for name, prompt in zip(came, prompts, strict=True):
        engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), sampling)
    while engine.has_unfinished_requests():
        for output in engine.step():
            times = came[output.request_id]
            more = len(output.outputs[0].token_ids) - len(times)
            times += [time.perf_counter() - began] * more
    return list(came.values())


if __name__ == "__main__":
    main()
