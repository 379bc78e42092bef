"""The plain stack: transformers `generate` and a padded training loop, with PEFT's adapter or without.

Settings, the quickest that were found: SDPA attention, KV cache, left padding for sampling and right padding for
training, no dropout, no gradient checkpointing. For sampling the adapter is in the base's type, for training in float32
(PEFT's default) under autocast.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from loragym.renderers import get_renderer
from peft import PeftModel
from transformers import GenerationConfig

from benchmarks.protocol import Answer, Handler, serve
from benchmarks.workers.common import load_model, peak_on_device, problem_seeds, set_threads, timed, versions


def load(options: Answer) -> tuple[Handler, Answer]:
    set_threads(options["threads"])
    device = options["device"]
    model, tokenizer = load_model(options["model"], dtype=options["dtype"], device=device)
    model.set_attn_implementation("sdpa")
    if options["peft"]:
        model = PeftModel.from_pretrained(
            model, options["adapter"], is_trainable=True, autocast_adapter_dtype=options["float32_adapter"]
        )

    def handle(request: Answer) -> Answer:
        if request["kind"] == "rl":
            answer = reinforce(model, tokenizer, request, device)
        else:
            with torch.autocast(device, torch.bfloat16, enabled=options.get("autocast", False)):
                answer = {"sample": sample, "train": train, "memory": memory}[request["kind"]](model, request, device)
        return {**answer, **peak_on_device(device)}

    return handle, {"versions": versions("torch", "transformers", "peft")}


def sample(model: Any, request: Answer, device: str) -> Answer:
    """One `generate` over all samples, to the longest; what a sample has beyond its own length is not counted."""
    prompts = request["prompts"]
    copies = len(request["lengths"][0])
    longest = max(max(lengths) for lengths in request["lengths"])
    ids, mask = _left_padded(prompts, device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=copies,
        max_new_tokens=longest,
        min_new_tokens=longest,
        eos_token_id=None,
        pad_token_id=0,
    )
    model.eval()
    torch.manual_seed(request["seed"])

    def work() -> torch.Tensor:
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)

    seconds, out = timed(work, device)
    if out.shape != (len(prompts) * copies, ids.shape[1] + longest):
        raise RuntimeError(f"generate gave {tuple(out.shape)}, not {longest} new tokens for each sample")
    return {"seconds": seconds, "tokens": sum(map(sum, request["lengths"]))}


def train(model: Any, request: Answer, device: str) -> Answer:
    """Padded batches of `rows_per_batch` sequences forward and backward, with the mean loss of all."""
    sequences, starts = request["sequences"], request["starts"]
    rows = request["rows_per_batch"]
    trained = sum(len(tokens) - start for tokens, start in zip(sequences, starts, strict=True))
    batches = [_batch(sequences[i : i + rows], starts[i : i + rows], device) for i in range(0, len(sequences), rows)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model.train()

    def work() -> float:
        total = 0.0
        for batch in batches:
            loss = model(**batch, use_cache=False, num_items_in_batch=trained).loss
            loss.backward()
            total += loss.item()
        if request.get("update"):
            optimizer.step()
        return total

    seconds, loss = timed(work, device)
    model.zero_grad()
    return {"seconds": seconds, "tokens": sum(map(len, sequences)), "loss": loss}


def reinforce(model: Any, tokenizer: Any, request: Answer, device: str) -> Answer:
    """One step of policy gradients in a plain loop: `generate`, grade, one padded batch, AdamW."""
    renderer = get_renderer(tokenizer)
    env = gymnasium.make(request["env"], disable_env_checker=True, **request["env_kwargs"])
    seeds = problem_seeds(request["problems"], request["step"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=request["learning_rate"])
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=True,
        temperature=request["temperature"],
        top_k=0,
        top_p=1.0,
        num_return_sequences=request["group"],
        max_new_tokens=request["max_tokens"],
        eos_token_id=end,
        pad_token_id=end,
    )

    def work() -> tuple[float, int]:
        prompts = [renderer.build_generation_prompt(env.reset(seed=seed)[0]) for seed in seeds]
        ids, mask = _left_padded(prompts, device)
        model.eval()
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        replies = out[:, ids.shape[1] :]
        ended = (replies == end).cumsum(-1)
        real = (ended == 0) | ((ended == 1) & (replies == end))
        rewards = torch.zeros(len(replies), device=device)
        for row, (tokens, kept) in enumerate(zip(replies.tolist(), real.tolist(), strict=True)):
            env.reset(seed=seeds[row // request["group"]])
            reply = renderer.parse_response([token for token, keep in zip(tokens, kept, strict=True) if keep])
            rewards[row] = float(env.step(reply)[1])
        groups = rewards.view(-1, request["group"])
        advantages = (groups - groups.mean(-1, keepdim=True)).flatten()
        model.train()
        mask = torch.cat([mask.repeat_interleave(request["group"], 0), real], -1)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        kept_logits = replies.shape[1] + 1
        logits = model(
            input_ids=out, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=kept_logits
        ).logits[:, :-1]
        logprobs = -torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1) / request["temperature"], replies.flatten(), reduction="none"
        )
        # On-policy the importance ratio is 1, and its gradient that of the log-probability.
        loss = -(advantages[:, None] * logprobs.view_as(replies) * real).sum() / real.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return rewards.mean().item(), int(real.sum())

    seconds, (reward, tokens) = timed(work, device)
    return {"seconds": seconds, "reward": reward, "tokens": tokens}


def _left_padded(prompts: list[list[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, `(prompts, longest)`."""
    wide = max(map(len, prompts))
    ids = torch.tensor([[0] * (wide - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def memory(model: Any, request: Answer, device: str) -> Answer:
    """One padded batch forward and backward, and an AdamW step of the adapter."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size - 3, (request["rows"], request["length"]), generator=generator)
    model.train()
    model(input_ids=ids.to(device), labels=ids.to(device), use_cache=False).loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]).step()
    return {"seconds": 0.0, "tokens": ids.numel()}


def _batch(sequences: list[list[int]], starts: list[int], device: str) -> dict[str, torch.Tensor]:
    wide = max(map(len, sequences))
    pad = [wide - len(tokens) for tokens in sequences]
    return {
        "input_ids": torch.tensor([s + [0] * p for s, p in zip(sequences, pad, strict=True)], device=device),
        "attention_mask": torch.tensor([[1] * len(s) + [0] * p for s, p in zip(sequences, pad, strict=True)]).to(
            device
        ),
        "labels": torch.tensor(
            [[-100] * start + s[start:] + [-100] * p for s, start, p in zip(sequences, starts, pad, strict=True)],
            device=device,
        ),
    }


if __name__ == "__main__":
    serve(load)
