"""The command `loragym`: train, chat, plot, play and check environments, and a list of what there is."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import secrets
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents import LoraPolicy
    from .messages import Message


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; expected errors end with a line on stderr and exit code 1, Ctrl-C with 130, SIGTERM with 143."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As with `python -m`: an environment of one's own is a module in the folder one works in.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    parser = argparse.ArgumentParser(prog="loragym", description="A Gymnasium for language models, trainer included.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, describe, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary, add_help=name != "train", allow_abbrev=False
        )
        describe(command)
        command.set_defaults(run=run)
    if odd := [argument for argument in arguments if argument != argument.encode("utf-8", "ignore").decode()]:
        parser.error(f"{odd[0]!r} holds bytes that are no UTF-8")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("train", "sweep"):
        parser.error(f"{options.command} does not take {' '.join(rest)}")
    options.rest = rest
    sys.exit(report_errors(lambda: options.run(options)))


def report_errors(run: Callable[[], None]) -> int:
    """Runs and returns the exit code; what a user can put right is one line, not a traceback."""
    from .envs import BadEnvironment
    from .envs.secrets import redacted_message
    from .envs.transcript import ESCAPED

    try:
        run()
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'stopped'}", file=sys.stderr)
        return int(getattr(interrupt, "exit_code", 130))
    except (ValueError, OSError, ImportError, RuntimeError, NotImplementedError, BadEnvironment) as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        # What was read may drive the terminal, and may hold a secret.
        print(redacted_message(f"loragym: {error}{notes}").translate(ESCAPED), file=sys.stderr)
        return 1
    return 0


def _describe_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a recipe; its own --help lists its fields")


def _train(options: argparse.Namespace) -> None:
    from .recipes import RECIPES

    if options.recipe is None:
        print("usage: loragym train RECIPE [--help] [--field value ...]\n\nRecipes:")
        width = max(map(len, RECIPES)) + 2
        for name, summary in RECIPES.items():
            print(f"  {name:{width}}{summary}")
        return
    from .trainers.stopping import Stop

    recipe = find_recipe(options.recipe)
    with Stop():
        recipe.main(options.rest)


def find_recipe(name: str) -> Any:
    """A recipe's module.

    Raises:
        ValueError: there is none of that name.
    """
    from .recipes import RECIPES

    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return importlib.import_module(f"{__package__}.recipes.{name.replace('/', '.')}")


def _describe_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a recipe; further arguments are its own, the same for all runs")
    parser.add_argument("--over", action="append", default=[], metavar="FIELD=A,B,C", help="a field and its values")
    parser.add_argument("--samples", type=int, default=0, help="so many random trials instead of the whole grid")
    parser.add_argument("--metric", required=True, help="what to compare runs by, as named in metrics.jsonl")
    parser.add_argument("--goal", choices=("min", "max"), default="min", help="whether less or more is better")
    parser.add_argument("--sweep-seed", type=int, default=0, help="seed of random trials")
    parser.add_argument("--sweep-dir", type=Path, default=None, help="where runs and results go (runs/sweep-RECIPE)")


def _sweep(options: argparse.Namespace) -> None:
    from .trainers import sweep
    from .trainers.stopping import Stop

    find_recipe(options.recipe)
    axes = [sweep.Axis.parse(text) for text in options.over]
    folder = options.sweep_dir or Path("runs") / f"sweep-{options.recipe.replace('/', '-')}"
    with Stop():
        results = sweep.sweep(
            options.recipe,
            axes,
            folder,
            metric=options.metric,
            goal=options.goal,
            samples=options.samples,
            seed=options.sweep_seed,
            arguments=options.rest,
        )
    print(f"\n{(folder / sweep.TABLE_FILE).read_text(encoding='utf-8')}")
    print(sweep.draw(results, axes, options.metric, folder / sweep.PICTURE_FILE))


def _describe_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a bundled name, a folder or a hub id; only its configuration is read")
    parser.add_argument("--task", default="supervised", help="supervised, reward, dpo, rl or distillation")
    parser.add_argument("--trained-tokens", type=int, help="how many tokens a supervised run will train on")


def _recommend(options: argparse.Namespace) -> None:
    from .trainers.hyperparameters import recommend

    found = recommend(options.model, options.task, trained_tokens=options.trained_tokens)
    print(f"learning rate  {found.learning_rate:.3g}")
    print(f"batch size     {found.batch_size}")
    print(f"rank           {found.rank}: {found.size.trained:,} weights ({found.size.attention:,} in the attention,")
    print(f"               {found.size.mlp:,} in the MLP; the unembedding would add {found.size.unembedding:,})")
    for note in found.notes:
        print(f"note: {note}")


def _describe_envs(parser: argparse.ArgumentParser) -> None:
    pass


def _envs(options: argparse.Namespace) -> None:
    from .envs import CATALOGUE
    from .envs.published import published

    for env_id, summary in CATALOGUE.items():
        print(f"{env_id:28}{summary}")
    others, problems = published()
    for name, summary in others:
        print(f"{name:28}{'' if len(name) < 28 else '  '}{summary}")
    for problem in problems:
        print(problem, file=sys.stderr)


def _describe_play(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", help="an id such as GuessNumber-v0, your_module:YourId-v0 or your_module:YourClass")
    parser.add_argument("--env-kwargs", default="{}", help="its arguments, as JSON")
    parser.add_argument("--seed", type=int, help="of the first episode; the next ones count on (default: a random one)")
    parser.add_argument("--index", type=int, help="play this one of its numbered problems")


def _play(options: argparse.Namespace) -> None:
    from .envs.making import make_env
    from .envs.play import play

    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    if seed < 0:
        raise ValueError(f"--seed is from 0 up, got {seed}")
    env = make_env(_spec_of(options))
    try:
        play(env, itertools.count(seed), None if options.index is None else {"index": options.index})
    finally:
        env.close()


def _describe_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "env", nargs="?", help="an id such as GuessNumber-v0, your_module:YourId-v0 or your_module:YourClass"
    )
    parser.add_argument("--env-kwargs", default="{}", help="its arguments, as JSON")
    parser.add_argument("--laws", nargs="+", metavar="LAW", help="only these (default: all; --list names them)")
    parser.add_argument("--seconds", type=float, default=300, help="how long each law may take (default: 300)")
    parser.add_argument("--list", action="store_true", help="list the laws and check nothing")


def _check(options: argparse.Namespace) -> None:
    from .envs import BadEnvironment
    from .envs.conformance import LAWS, try_laws
    from .envs.secrets import redacted_message

    if options.list:
        for law in LAWS.values():
            print(f"{law.name:32}{law.statement}")
        return
    if options.env is None:
        raise ValueError("which environment? Name an id such as GuessNumber-v0, or your_module:YourClass")
    if unknown := [name for name in options.laws or () if name not in LAWS]:
        raise ValueError(f"there is no law {unknown[0]!r}; there are {', '.join(LAWS)}")
    if not options.seconds > 0:
        raise ValueError(f"--seconds is above 0, got {options.seconds}")
    spec = _spec_of(options)
    laws, tried, broken = options.laws or list(LAWS), 0, 0
    for name, findings in try_laws(spec, laws, seconds=options.seconds):
        tried += 1
        broken += len(findings)
        print(f"{'BROKEN' if findings else 'ok':8}{LAWS[name].statement}")
        for finding in findings:
            sentence = redacted_message(finding.sentence)
            print("\n".join(f"{'':8}{line}" for line in textwrap.wrap(sentence, 112)))
    if tried < len(laws):
        print(f"{'':8}The other laws were not tried: put this one right first.")
    if broken:
        raise BadEnvironment(f"{options.env} breaks {broken} of {len(laws)} laws")
    print(f"{options.env} keeps all {len(laws)} laws")


def _spec_of(options: argparse.Namespace) -> Any:
    from .envs.conformance import spec_of

    try:
        kwargs = json.loads(options.env_kwargs)
    except json.JSONDecodeError as error:
        raise ValueError(f"--env-kwargs {options.env_kwargs!r} is not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ValueError(f'--env-kwargs is a JSON object such as {{"high": 9}}, got {options.env_kwargs!r}')
    return spec_of(options.env, kwargs)


def _describe_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", "-o", type=Path, help="picture to write (default: curves.png in the first run)")
    parser.add_argument("--panels", nargs="+", help="which panels to draw, by title (default: all there is)")


def _plot(options: argparse.Namespace) -> None:
    from .trainers.curves import plot_runs

    print(plot_runs(options.runs, options.output or options.runs[0] / "curves.png", panels=options.panels))


def _describe_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run directory, a PEFT folder, a bundled name, a local directory or a hub id")
    parser.add_argument("--system", help="a system message to begin with")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--max-tokens", type=int, default=256, help="most tokens of a reply (default: 256)")
    parser.add_argument("--renderer", help="chat format by name (default: the run's or the model's own)")


def _chat(options: argparse.Namespace) -> None:
    from .agents import BaseModel, SamplingParams
    from .envs import transcript
    from .messages import system, user, without_stop_reason
    from .renderers import get_renderer

    base_name, adapter, config = find_policy(options.model)
    base = BaseModel.load(base_name)
    policy: LoraPolicy | BaseModel = base.load_lora("policy", adapter) if adapter else base
    renderer = get_renderer(base.tokenizer, options.renderer or config.get("renderer"))
    stop: Any = tuple(renderer.stop_sequences)
    params = SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature, stop=stop)
    opening = [system(options.system)] if options.system else training_prefix(config)
    if opening:
        print(transcript(opening))
    print("(an empty line starts over, Ctrl-D ends)")
    messages = list(opening)
    while True:
        try:
            text = input("[you] ")
        except EOFError:
            print()
            return
        if not text.strip():
            messages = list(opening)
            print("(started over)")
            continue
        messages.append(user(text))
        prompt = renderer.build_generation_prompt(messages)
        ((completion,),) = policy.sampler().sample([prompt], 1, params)
        reply = renderer.parse_response(completion.tokens)
        messages.append(without_stop_reason(reply))
        # The model's words, less what would drive the terminal.
        print(transcript([reply]) + ("" if completion.stop_reason == "stop" else " (cut off)"))


def _describe_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("conversation", type=Path, help="JSON: messages, or an object with `messages` and `tools`")
    parser.add_argument("--model", required=True, help="a bundled name, a folder with a tokenizer.json, or a hub id")
    parser.add_argument("--renderer", help="chat format by name (default: the model's own)")
    parser.add_argument("--train-on", default="all_assistant", help="what is trained (default: all_assistant)")
    parser.add_argument("--prompt", action="store_true", help="show the prompt for the next reply, not an example")
    parser.add_argument("--plain", action="store_true", help="brackets around what is trained instead of colours")


def _render(options: argparse.Namespace) -> None:
    from .renderers import (
        SupervisedExample,
        TextTokenizer,
        TrainOn,
        build_supervised_examples,
        from_openai,
        get_renderer,
        show_tokens,
        tools_from_openai,
    )

    try:
        given = json.loads(options.conversation.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{options.conversation} is no JSON ({error}); expected messages") from error
    given = given if isinstance(given, dict) else {"messages": given}
    messages, tools = from_openai(given.get("messages", ())), tools_from_openai(given.get("tools") or ())
    tokenizer = TextTokenizer(_tokenizer_of(options.model))
    renderer = get_renderer(tokenizer, options.renderer)
    if options.prompt:
        prompt = renderer.build_generation_prompt(messages, tools)
        examples = [SupervisedExample(prompt, [0.0] * len(prompt))]
    else:
        examples = build_supervised_examples(renderer, messages, tools, TrainOn(options.train_on))
    print(f"renderer {renderer.name}, {len(examples)} example{'s' * (len(examples) > 1)}")
    for example in examples:
        print(show_tokens(example, tokenizer, colour=not options.plain))


def _tokenizer_of(model: str) -> str | Path:
    if Path(model).exists() or "/" in model:
        return model
    from .agents.bundled import fetch_bundled

    return fetch_bundled(model)


def find_policy(name: str) -> tuple[str, Path | None, dict[str, Any]]:
    """What a user means by a run, a PEFT folder or a model: the base's name, the adapter's folder, the run's config.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: what says so is damaged.
    """
    from .envs.json_files import read_json_object
    from .trainers.checkpoints import ADAPTER_FILE, find_adapter

    folder = Path(name)
    if not any((folder / part).exists() for part in ("metrics.jsonl", "checkpoints", ADAPTER_FILE)) and not any(
        (folder / part / ADAPTER_FILE).is_file() for part in ("checkpoint", "adapter")
    ):
        return name, None, {}
    adapter = find_adapter(folder)
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        path, key = folder / "config.json", "model"
        config = found = read_json_object(path, "is it the config of a run?")
    else:
        path, key = adapter / ADAPTER_FILE, "base_model_name_or_path"
        config, found = {}, read_json_object(path, "use another adapter")
    if not isinstance(found.get(key), str):
        raise ValueError(f"{path} does not name the base model: {key} is {found.get(key)!r:.80}")
    return found[key], adapter, config


def training_prefix(config: dict[str, Any]) -> list[Message]:
    """What stood before each question in training, such as worked examples."""
    if "env" not in config or config.get("data"):
        return []
    from .envs.making import make_env

    env = make_env(config["env"], config.get("env_kwargs"))
    opening, _ = env.reset(seed=0)
    env.close()
    return list(opening[:-1])


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], Callable[[argparse.ArgumentParser], None], str]] = {
    "train": (_train, _describe_train, "Run a recipe; `loragym train` lists them."),
    "sweep": (_sweep, _describe_sweep, "Run a recipe over a grid of values, or random ones, and compare."),
    "recommend": (_recommend, _describe_recommend, "A learning rate and an adapter's size to begin with, for a model."),
    "chat": (_chat, _describe_chat, "Talk to a run's policy, an adapter or a model."),
    "plot": (_plot, _describe_plot, "Draw the curves of one or more runs."),
    "render": (_render, _describe_render, "Show a conversation's tokens, and which of them are trained."),
    "envs": (_envs, _describe_envs, "List the environments."),
    "play": (_play, _describe_play, "Play an environment yourself."),
    "check": (_check, _describe_check, "Check an environment of yours, or one of ours, and say what is wrong."),
}


if __name__ == "__main__":
    main()
