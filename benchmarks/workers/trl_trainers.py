"""TRL's trainers: `SFTTrainer` on given tokens, `GRPOTrainer` on the RL step.

Settings: TRL's defaults, but for the batch, which is one padded batch of the same sequences, and for gradient
checkpointing, which is off unless asked for: it saves memory and costs time. bfloat16 means a bfloat16 base, PEFT's
float32 adapter and TRL's autocast. Samples come from `generate`: vLLM inside TRL needs a GPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchmarks.protocol import Answer, Handler, serve
from benchmarks.workers.common import problem_seeds, set_threads, versions

MOST_EPISODES = 64
"""In one pass of the RL step: 64 take 11 GiB. More are accumulated, and still sampled together."""


class Stopwatch(TrainerCallback):
    """Seconds of each step: `forward_backward`, and the whole with the update."""

    def __init__(self) -> None:
        self.forward_backward: list[float] = []
        self.whole: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.forward_backward.append(time.perf_counter() - self._began)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.whole.append(time.perf_counter() - self._began)


class Goal(TrainerCallback):
    """Stops once the mean reward of the last steps has reached a goal, or the time is over."""

    def __init__(self, goal: float, window: int, limit: float) -> None:
        self.goal, self.window, self.limit = goal, window, limit
        self.rewards: list[float] = []
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> Any:
        if logs and "reward" in logs:
            self.rewards.append(logs["reward"])
            recent = self.rewards[-self.window :]
            reached = len(recent) == self.window and sum(recent) / self.window >= self.goal
            self.reached = reached
            control.should_training_stop = reached or time.perf_counter() - self.began > self.limit
        return control


def load(options: Answer) -> tuple[Handler, Answer]:
    set_threads(options["threads"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    base = AutoModelForCausalLM.from_pretrained(options["model"], dtype=getattr(torch, options["dtype"]))
    model = PeftModel.from_pretrained(base, options["adapter"], is_trainable=True)
    common = {
        "output_dir": str(Path(options["scratch"]) / "trl"),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": options["dtype"] == "bfloat16",
        "gradient_checkpointing": options.get("checkpointing", False),
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False,
    }

    def handle(request: Answer) -> Answer:
        if request["kind"] == "train":
            return train(model, tokenizer, request, {**common, "padding_free": options.get("padding_free", False)})
        return reinforce(model, tokenizer, request, common)

    return handle, {"versions": versions("torch", "transformers", "peft", "trl", "accelerate")}


def train(model: Any, tokenizer: Any, request: Answer, common: dict[str, Any]) -> Answer:
    """One step of `SFTTrainer`, from its beginning to before the update, at learning rate 0."""
    sequences, starts = request["sequences"], request["starts"]
    masks = [[0] * start + [1] * (len(tokens) - start) for tokens, start in zip(sequences, starts, strict=True)]
    rows = min(request["rows_per_batch"], len(sequences))
    watch = Stopwatch()
    config = SFTConfig(
        **common,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=-(-len(sequences) // rows),
        max_steps=1,
        max_length=None,
        completion_only_loss=True,
        learning_rate=0.0,
        max_grad_norm=0.0,
    )
    data = Dataset.from_dict({"input_ids": sequences, "completion_mask": masks})
    trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
    loss = trainer.train().training_loss
    model.zero_grad()
    return {"seconds": watch.forward_backward[0], "tokens": sum(map(len, sequences)), "loss": loss}


def reinforce(model: Any, tokenizer: Any, request: Answer, common: dict[str, Any]) -> Answer:
    """Steps of `GRPOTrainer`: one (`rl`), or as many as it takes to reach a reward (`rl-until`)."""
    from loragym.renderers import get_renderer

    renderer = get_renderer(tokenizer)
    env = gymnasium.make(request["env"], disable_env_checker=True, **request["env_kwargs"])
    steps, first = request.get("most_steps", 1), request["step"]
    seeds = [seed for step in range(first, first + steps) for seed in problem_seeds(request["problems"], step)]
    # The same prompt to the token: the rendered text, whose special tokens the tokenizer recognises.
    prompts = [tokenizer.decode(renderer.build_generation_prompt(env.reset(seed=seed)[0])) for seed in seeds]

    def reward(completions: list[str], problem: list[int], **_: Any) -> list[float]:
        rewards = []
        for completion, seed in zip(completions, problem, strict=True):
            env.reset(seed=seed)
            rewards.append(float(env.step(completion)[1]))
        return rewards

    batch = request["problems"] * request["group"]
    at_once = min(batch, MOST_EPISODES)
    config = GRPOConfig(
        **common,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=batch // at_once,
        num_generations=request["group"],
        max_completion_length=request["max_tokens"],
        temperature=request["temperature"],
        learning_rate=request["learning_rate"],
        max_steps=steps,
        shuffle_dataset=False,
    )
    watch = Stopwatch()
    callbacks: list[TrainerCallback] = [watch]
    if request["kind"] == "rl-until":
        callbacks.append(Goal(request["goal"], request["window"], request["limit"]))
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts, "problem": seeds}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    began = time.perf_counter()
    trainer.train()
    if request["kind"] == "rl-until":
        goal = callbacks[1]
        assert isinstance(goal, Goal)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "steps": len(goal.rewards), "reached": goal.reached, "rewards": goal.rewards}
    logged = trainer.state.log_history[0]
    return {
        "seconds": watch.whole[0],
        "reward": logged["reward"],
        "tokens": round(logged["completions/mean_length"] * batch),
    }


if __name__ == "__main__":
    serve(load)
