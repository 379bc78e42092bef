"""Sampling with the base model itself: continuous batching, and nothing computed twice.

Prompts that begin alike are prefilled as one prefix tree. All samples of a prompt share its keys and values, and those
that have drawn the same tokens so far share one row of the batch until they part. A prompt that has one sample alone
lies in front of that sample's own tokens. What has finished is kept for a while: a prompt that goes on from it, as the
next turn of a conversation does, is computed from there.

Suffixes: `B` rows of the batch, `P` prompts of a prefill wave, `W` rows per prompt, `L` prompt tokens, `T` own tokens;
`H`, `G`, `R`, `D` as in `attention`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from . import kernels
from .attention import AttentionOptions, TreeLayout, scaled_product
from .decoding import PackedPrompts, Seat
from .exclusive import exclusive
from .lora import Adapter
from .memory import OutOfMemory, is_out_of_memory, note_shortage, release_memory
from .packing import Pack, pack_sequences
from .requests import checked_request, sample_batch, seed_of
from .reuse import Finished, KeyValues, PackPast, Span
from .sampling import Completion, SamplingParams, draw, sample_keys, uniforms

if TYPE_CHECKING:
    from .base_model import BaseModel

TAIL_STEP = 32
"""The cache of own tokens grows at least by so many."""
PATIENCE = 0.25
"""Requests wait until there are so many for each sample under way: what they have in common is then computed once."""
REUSE_BYTES = 2**29
FRUITLESS = 512
"""After so many finished completions that no prompt went on from, none is kept any more."""


@dataclass(slots=True)
class _Sample:
    ticket: int
    index: int
    key: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Waiting:
    prompt: tuple[int, ...]
    params: SamplingParams
    samples: list[_Sample]


@dataclass(slots=True, eq=False)
class _Wave(KeyValues):
    """Prompts prefilled together: each layer's keys and values, `(P, G, L, D)`."""

    lengths_P: torch.Tensor


@dataclass(slots=True)
class _Row:
    """Samples that have drawn the same tokens so far; its place in the list of rows is its place in the caches.

    `wave` holds the prompt that it shares; None if the prompt lies in the row's own cache.
    """

    wave: _Wave | None
    place: int
    prompt: tuple[int, ...]
    params: SamplingParams
    samples: list[_Sample]

    @property
    def prompt_length(self) -> int:
        return len(self.prompt)

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the sample, the one drawn last included."""
        return self.prompt_length + len(self.samples[0].tokens)

    @property
    def own(self) -> int:
        """Those of them that have a place in the row's own cache."""
        return self.length if self.wave is None else self.length - self.prompt_length


class TorchSampler:
    """A frozen snapshot of a policy that samples; made by `LoraPolicy.sampler` or `BaseModel.sampler`.

    Use `sample` for a batch, or `submit` and `step` to keep a changing set of requests going.

    Args:
        base: the base model.
        adapter: the adapter, in the base's type; None is the bare base.
        version: which update of the policy this is.
        max_concurrent: most samples under way at once; the rest waits.
        prefill_tokens: most tokens in one prefill pass.
        reuse_bytes: the most memory that keys and values of finished completions may hold, for prompts that go on from
            them.
        on_shortage: told the new `max_concurrent` when it is halved because memory ran out.
    """

    def __init__(
        self,
        base: BaseModel,
        adapter: Adapter | None,
        *,
        version: int = 0,
        max_concurrent: int = 256,
        prefill_tokens: int = 4096,
        reuse_bytes: int = REUSE_BYTES,
        on_shortage: Callable[[int], None] | None = None,
    ) -> None:
        if max_concurrent < 1 or prefill_tokens < 1:
            raise ValueError(
                f"max_concurrent and prefill_tokens are at least 1, got {max_concurrent}, {prefill_tokens}"
            )
        self.base = base
        if base.fused is not None:
            base.fused.pack()
        self.adapter = adapter
        self.version = version
        self.max_concurrent = max_concurrent
        self.prefill_tokens = prefill_tokens
        self._on_shortage = on_shortage
        self._open: dict[int, _Waiting] = {}
        """All samples of the requests that are not handed out, by ticket."""
        self._waiting: deque[_Waiting] = deque()
        self._rows: list[_Row] = []
        self._tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._like: dict[int, torch.Tensor] = {}
        self._packed: dict[KeyValues, PackedPrompts] = {}
        self._past = Finished(reuse_bytes)
        self._kept = self._reused = 0
        self._under_way = 0
        self._tickets = 0
        self._finished: dict[int, dict[int, Completion]] = {}
        self._wanted: dict[int, int] = {}
        self._unclaimed: dict[int, list[Completion]] = {}
        self._seeds = np.random.SeedSequence()

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int = 1, params: SamplingParams | None = None
    ) -> list[list[Completion]]:
        """`n` completions of each prompt.

        Raises:
            ValueError: a prompt is empty or leaves no room in the context.
        """
        completions, others = sample_batch(self, prompts, n, params)
        # Requests that were submitted apart and finished meanwhile: the next `step` hands them out.
        self._unclaimed |= others
        return completions

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int:
        """Queues a request for `n` completions of one prompt; returns its ticket.

        Raises:
            ValueError: the prompt is empty, leaves no room in the context or has a token that the model does not know.
        """
        params = checked_request(self.base, prompt, params, n)
        seed, params = seed_of(params, self._seeds), replace(params, seed=None)
        ticket, self._tickets = self._tickets, self._tickets + 1
        samples = [_Sample(ticket, index, key) for index, key in enumerate(sample_keys(seed, n))]
        self._wanted[ticket] = n
        self._finished[ticket] = {}
        self._open[ticket] = _Waiting(tuple(prompt), params, samples)
        self._queue(self._open[ticket])
        return ticket

    @property
    def pending(self) -> int:
        """Requests not handed out yet."""
        return len(self._wanted) + len(self._unclaimed)

    @exclusive
    @torch.no_grad()
    def step(self) -> dict[int, list[Completion]]:
        """Admits what has room, draws one token for every sample under way, and returns requests that finished.

        When memory runs out, unfinished samples begin again, half as many at a time. As each draws by its own random
        numbers, they come out the same but for rounding.

        Raises:
            OutOfMemory: there is one sample at a time already.
        """
        while True:
            try:
                if not self._admit() and self._rows:
                    self._decode()
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error) or type(error).__name__
            self._begin_again(problem)
        done, self._unclaimed = self._unclaimed, {}
        for ticket in [t for t, n in self._wanted.items() if len(self._finished[t]) == n]:
            del self._wanted[ticket], self._open[ticket]
            completions = self._finished.pop(ticket)
            done[ticket] = [completions[index] for index in sorted(completions)]
        return done

    def _queue(self, request: _Waiting) -> None:
        """Queues a request, in parts that may be under way at once."""
        for start in range(0, len(request.samples), self.max_concurrent):
            part = request.samples[start : start + self.max_concurrent]
            self._waiting.append(_Waiting(request.prompt, request.params, part))

    def _begin_again(self, problem: str) -> None:
        """Queues all unfinished samples anew, half as many at a time."""
        before = self.max_concurrent
        self._rows, self._tails, self._like, self._packed = [], {}, {}, {}
        self._past = Finished(self._past.max_bytes // 2)
        self._under_way = 0
        self._waiting.clear()
        release_memory()
        if before == 1:
            raise OutOfMemory(
                f"out of memory with one reply at a time ({problem.strip()[:300]}). Use shorter replies or prompts "
                "(max-tokens), a smaller model, dtype bfloat16, or a device with more memory"
            )
        self.max_concurrent = before // 2
        note_shortage(
            self.base,
            f"out of memory: sampling goes on with {self.max_concurrent} replies at a time instead of {before} "
            f"({problem.strip()[:200]})",
        )
        if self._on_shortage is not None:
            self._on_shortage(self.max_concurrent)
        for ticket, request in self._open.items():
            unfinished = [sample for sample in request.samples if sample.index not in self._finished[ticket]]
            for sample in unfinished:
                sample.tokens, sample.logprobs = [], []
            self._queue(replace(request, samples=unfinished))

    def _admit(self) -> bool:
        """Prefills waiting requests once a good part of the batch is free, and draws their first tokens."""
        room, waiting = self.max_concurrent - self._under_way, self._waiting_samples()
        if not waiting or waiting < PATIENCE * self._under_way:
            return False
        if self._rows and room < self.max_concurrent // 4 and room < waiting:
            return False
        groups: dict[tuple[tuple[int, ...], SamplingParams], list[_Sample]] = {}
        while self._waiting and len(self._waiting[0].samples) <= room:
            request = self._waiting.popleft()
            groups.setdefault((request.prompt, request.params), []).extend(request.samples)
            room -= len(request.samples)
            self._under_way += len(request.samples)
        if not groups:
            return False
        prompts = list({prompt: None for prompt, _ in groups})
        begun = [self._past.longest_prefix(prompt) for prompt in prompts]
        spans = [[] if tokens is None else self._past.spans(tokens) for tokens in begun]
        known = [0 if tokens is None else len(tokens) for tokens in begun]
        for pack in pack_sequences(prompts, max_nodes=self.prefill_tokens, known=known, device=self.base.device):
            past = PackPast(pack, [spans[m] for m in pack.members])
            self._prefill(pack, past, [prompts[m] for m in pack.members], groups)
        used = {tokens for tokens in begun if tokens is not None}
        # Whoever went on from them keeps more.
        self._past.drop(used)
        self._reused += len(used)
        return True

    def _waiting_samples(self) -> int:
        return sum(len(request.samples) for request in self._waiting)

    def _prefill(
        self,
        pack: Pack,
        past: PackPast,
        prompts: list[tuple[int, ...]],
        groups: dict[tuple[tuple[int, ...], SamplingParams], list[_Sample]],
    ) -> None:
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        tokens, positions = pack.fresh(pack.tokens_T), pack.fresh(pack.positions_T)
        device = self.base.device
        place = {prompt: index for index, prompt in enumerate(prompts)}
        rows = []
        wave = _Wave({}, {}, torch.as_tensor([len(p) for p in prompts], device=device))
        for (prompt, params), samples in groups.items():
            if prompt in place:
                rows.append(_Row(wave, place[prompt], prompt, params, samples))
        last = pack.rows(torch.as_tensor([int(pack.paths[row.place][-1]) for row in rows], device=device))
        hidden = self.base.hidden_states(tokens, positions, TreeLayout(pack, kept, past), self.adapter, last)
        logits = self.base.logits(hidden, self.adapter)
        # Nothing is shared where each prompt has one sample alone.
        alone = len(rows) == len(prompts) and all(len(row.samples) == 1 for row in rows)
        if alone:
            for row in rows:
                row.wave = None
        new = [part for parts in self._draw(rows, logits) for part in parts]
        if not new:
            return
        length = max(map(len, pack.paths))
        nodes_PL = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
        for index, path in enumerate(pack.paths):
            nodes_PL[index, : len(path)] = torch.as_tensor(path)
        first, self._rows = len(self._rows), self._rows + new
        self._like = {layer: k_TGD.new_empty(0, *k_TGD.shape[1:]) for layer, (k_TGD, _) in kept.items()}
        if alone:
            nodes_PL = nodes_PL[[row.place for row in new]]
            self._make_room(len(self._rows), max(row.own for row in new))
        for layer, (k_TGD, v_TGD) in kept.items():
            keys, values = (x_TGD[nodes_PL].transpose(1, 2) for x_TGD in (k_TGD, v_TGD))
            if alone:
                for tail, own in zip(self._tails[layer], (keys, values), strict=True):
                    tail[first : first + len(new), :, :length] = own
            else:
                wave.keys[layer], wave.values[layer] = keys.contiguous(), values.contiguous()

    def _decode(self) -> None:
        rows = self._rows
        device = self.base.device
        self._make_room(len(rows), max(row.own for row in rows))
        tokens_B = torch.as_tensor([row.samples[0].tokens[-1] for row in rows], device=device)
        positions_B = torch.as_tensor([row.length - 1 for row in rows], device=device)
        hidden = self._new_states(tokens_B, positions_B)
        survivors = self._draw(rows, self.base.logits(hidden, self.adapter))
        self._keep(rows, survivors)
        self._rearrange(survivors)

    def _new_states(self, tokens_B: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
        """The states of a new token for each row; in one call where there is one."""
        stepper = None if self.base.fused is None else self.base.fused.stepper
        if stepper is not None and kernels.usable(*self._tails[0]):
            seats = [Seat(row.own, row.wave, row.place, row.prompt_length) for row in self._rows]
            return stepper(tokens_B, positions_B, seats, self._tails, self._packed, self.adapter)
        layout = _DecodeLayout(self._rows, self._tails, positions_B)
        return self.base.hidden_states(tokens_B, positions_B, layout, self.adapter)

    def _draw(self, rows: list[_Row], logits: torch.Tensor) -> list[list[_Row]]:
        """Gives each sample its next token; returns for each row the rows that its unfinished samples part into."""
        samples = [(index, sample) for index, row in enumerate(rows) for sample in row.samples]
        numbers = uniforms([s.key for _, s in samples], [len(s.tokens) for _, s in samples])
        tokens, logprobs = draw(logits, [row.params for row in rows], [index for index, _ in samples], numbers)
        parted: list[dict[int, list[_Sample]]] = [{} for _ in rows]
        for (index, sample), token, logprob in zip(samples, tokens, logprobs, strict=True):
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            reason = self._stop_reason(sample, rows[index].params)
            if reason is None:
                parted[index].setdefault(token, []).append(sample)
            else:
                self._finished[sample.ticket][sample.index] = Completion(sample.tokens, sample.logprobs, reason)
                self._under_way -= 1
        return [
            [_Row(row.wave, row.place, row.prompt, row.params, group) for group in parts.values()]
            for row, parts in zip(rows, parted, strict=True)
        ]

    def _stop_reason(self, sample: _Sample, params: SamplingParams) -> Literal["stop", "length"] | None:
        stop = params.stop or ()
        if stop and isinstance(stop[0], str):
            # Every token spells at least one byte, so a stop string that ends here lies in this many last tokens.
            reach = max(len(s.encode()) for s in stop)
            text = self.base.tokenizer.decode(sample.tokens[-reach:], skip_special_tokens=False)
            if any(s in text for s in stop):
                return "stop"
        elif sample.tokens[-1] in stop:
            return "stop"
        return "length" if len(sample.tokens) >= params.max_tokens else None

    def _keep(self, rows: list[_Row], survivors: list[list[_Row]]) -> None:
        """Keeps the keys and values of rows that have a sample which finished; the last token drawn has none yet."""
        ended = [
            index
            for index, (row, parts) in enumerate(zip(rows, survivors, strict=True))
            if sum(len(part.samples) for part in parts) < len(row.samples)
        ]
        if not ended or not self._past.max_bytes or (self._kept >= FRUITLESS and not self._reused):
            return
        index_B = torch.as_tensor(ended, device=self.base.device)
        longest = max(rows[index].own for index in ended) - 1
        cache = KeyValues({}, {})
        for layer, tails in self._tails.items():
            cache.keys[layer], cache.values[layer] = (x.narrow(2, 0, longest).index_select(0, index_B) for x in tails)
        for place, row in enumerate(rows[index] for index in ended):
            spans = [Span(cache, place, row.own - 1)]
            if row.wave is not None:
                spans.insert(0, Span(row.wave, row.place, row.prompt_length))
            self._past.add((*row.prompt, *row.samples[0].tokens[:-1]), spans)
        self._kept += len(ended)

    def _rearrange(self, survivors: list[list[_Row]]) -> None:
        """Keeps the caches' rows dense: the first part of a row stays in place, the others and the gaps are copied."""
        rows: list[_Row | None] = [parts[0] if parts else None for parts in survivors]
        copies: list[tuple[int, int]] = []
        gaps = deque(index for index, row in enumerate(rows) if row is None)
        for source, parts in enumerate(survivors):
            for part in parts[1:]:
                if gaps:
                    target = gaps.popleft()
                    rows[target] = part
                else:
                    target = len(rows)
                    rows.append(part)
                copies.append((source, target))
        self._make_room(len(rows), 0)
        self._copy_tails(copies)
        moves = []
        while gaps:
            while rows and rows[-1] is None:
                rows.pop()
            target = gaps.popleft()
            if target >= len(rows):
                break
            moves.append((len(rows) - 1, target))
            rows[target] = rows.pop()
        self._copy_tails(moves)
        self._rows = [row for row in rows if row is not None]

    def _copy_tails(self, copies: list[tuple[int, int]]) -> None:
        if not copies or not self._tails:
            return
        source, target = (torch.as_tensor(column, device=self.base.device) for column in zip(*copies, strict=True))
        used = max(row.own for row in self._rows)
        for keys, values in self._tails.values():
            keys[target, :, :used] = keys[source, :, :used]
            values[target, :, :used] = values[source, :, :used]

    def _make_room(self, rows: int, own: int) -> None:
        """Grows the caches of own tokens to at least this many rows and tokens."""
        for layer, like_TGD in self._like.items():
            _, groups, size = like_TGD.shape
            keys, values = self._tails.get(layer, (like_TGD.new_empty(0, groups, 0, size),) * 2)
            have_rows, _, have_own, _ = keys.shape
            if rows <= have_rows and own <= have_own:
                continue
            shape = (
                have_rows if rows <= have_rows else max(rows, self._under_way),  # each sample may need its own
                groups,
                have_own if own <= have_own else max(3 * have_own // 2, own + TAIL_STEP),
                size,
            )
            grown = []
            for old in (keys, values):
                new = like_TGD.new_zeros(shape)
                new[:have_rows, :, :have_own] = old[:, :, :have_own]
                grown.append(new)
            self._tails[layer] = (grown[0], grown[1])


class _DecodeLayout:
    """One new token for each row: it sees its prompt, shared with the other rows of that prompt, and its own tokens."""

    def __init__(
        self, rows: list[_Row], tails: dict[int, tuple[torch.Tensor, torch.Tensor]], positions_B: torch.Tensor
    ) -> None:
        device = positions_B.device
        self.tails = tails
        self.positions_B = positions_B
        own = np.asarray([row.own - 1 for row in rows])
        self.own_B = torch.as_tensor(own, device=device)
        self.longest = int(own.max()) + 1
        waves: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            if row.wave is not None:
                waves.setdefault(id(row.wave), []).append(index)
        self.waves = [_WaveRows(rows, members, device) for members in waves.values()]
        self.prompt_length = max((wave.length for wave in self.waves), default=0)
        self.prompt_lengths_B = torch.zeros_like(self.own_B)
        for wave in self.waves:
            self.prompt_lengths_B[wave.rows] = wave.lengths_B
        self._places: dict[tuple[int, int], torch.Tensor] = {}
        self._biases: dict[tuple[int | None, torch.dtype], torch.Tensor | None] = {}

    def attend(
        self, layer: int, q_BHD: torch.Tensor, k_BGD: torch.Tensor, v_BGD: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        (B, H, D), G = q_BHD.shape, k_BGD.shape[1]
        R, L, T = H // G, self.prompt_length, self.longest
        tails = self.tails[layer]
        if D in kernels.HEAD_SIZES and kernels.usable(q_BHD, *tails):
            on_prompt = q_BHD.new_empty(B, G, R, L)
            for wave in self.waves:
                wave.score(layer, q_BHD, on_prompt, options.scale)
            out = kernels.attend(q_BHD, k_BGD, v_BGD, tails, self.own_B, on_prompt, self.prompt_lengths_B, options)
            for wave in self.waves:
                wave.add_values(layer, on_prompt, out)
            return out
        for tail, new in zip(tails, (k_BGD, v_BGD), strict=True):
            tail.view(-1, D).index_copy_(0, self._new_places(G, tail.shape[2]), new.reshape(B * G, D))
        own_k, own_v = (tail[:B, :, :T].flatten(0, 1) for tail in tails)
        q = q_BHD.reshape(B * G, R, D)
        scores = scaled_product(q, own_k.transpose(1, 2), options.scale).view(B, G, R, T)
        if self.waves:
            # Where no wave writes there must be a number, for the bias to take away.
            on_prompt = (q.new_empty if self.waves[0].all_rows else q.new_zeros)(B, G, R, L)
            for wave in self.waves:
                wave.score(layer, q_BHD, on_prompt, options.scale)
            scores = torch.cat([on_prompt, scores], -1)
        if options.softcap:
            scores = torch.tanh(scores / options.softcap).mul_(options.softcap)
        if (bias := self._bias(options.window, q.dtype)) is not None:
            scores += bias
        p = torch.softmax(scores, -1)
        out = torch.bmm(p.view(B * G, R, L + T)[..., L:], own_v).view(B, H, D)
        for wave in self.waves:
            wave.add_values(layer, p, out)
        return out

    def _new_places(self, groups: int, capacity: int) -> torch.Tensor:
        """Where the rows' new keys and values go in a flattened cache `(rows * groups * capacity, D)`."""
        key = (groups, capacity)
        if key not in self._places:
            B = len(self.own_B)
            heads = torch.arange(B * groups, device=self.own_B.device).view(B, groups)
            self._places[key] = (heads * capacity + self.own_B[:, None]).flatten()
        return self._places[key]

    def _bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """0 where a row may look, -inf elsewhere, `(B, 1, 1, prompt + own)`; None if it may look everywhere."""
        key = (window, dtype)
        if key not in self._biases:
            device = self.own_B.device
            at_L, at_T = torch.arange(self.prompt_length, device=device), torch.arange(self.longest, device=device)
            in_prompt, in_own = at_L < self.prompt_lengths_B[:, None], at_T <= self.own_B[:, None]
            if window is not None:
                in_prompt &= self.positions_B[:, None] - at_L < window
                in_own &= self.own_B[:, None] - at_T < window
            allowed = torch.cat([in_prompt, in_own], -1)
            bias = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))
            self._biases[key] = None if bool(allowed.all()) else bias[:, None, None]
        return self._biases[key]


class _WaveRows:
    """The rows of one prefill wave in a decoding step; `P` of its prompts have rows, at most `W` each."""

    def __init__(self, rows: list[_Row], members: list[int], device: torch.device) -> None:
        wave = rows[members[0]].wave
        assert wave is not None
        self.wave = wave
        prompts: dict[int, list[int]] = {}
        for place, index in enumerate(members):
            prompts.setdefault(rows[index].place, []).append(place)
        widest = max(map(len, prompts.values()))
        self.shape_PW = (len(prompts), widest)
        place_PW = np.zeros(self.shape_PW, dtype=np.int64)
        back = np.zeros(len(members), dtype=np.int64)
        for p, places in enumerate(prompts.values()):
            place_PW[p, : len(places)] = places
            back[places] = p * widest + np.arange(len(places))
        self.rows = torch.as_tensor(members, device=device)
        self.all_rows = len(members) == len(rows)
        # Most often the rows lie by prompt and each prompt has as many: then nothing is to be moved.
        self.in_order = len(back) == place_PW.size and bool((back == np.arange(len(back))).all())
        self.place_PW = torch.as_tensor(place_PW.ravel(), device=device)
        self.back_B = torch.as_tensor(back, device=device)
        everything = list(prompts) == list(range(len(self.wave.lengths_P)))
        self.prompts_P = None if everything else torch.as_tensor(list(prompts), device=device)
        self.lengths_B = torch.as_tensor([rows[i].prompt_length for i in members], device=device)
        self.length = int(max(rows[i].prompt_length for i in members))

    def score(self, layer: int, q_BHD: torch.Tensor, scores_BGRX: torch.Tensor, scale: float) -> None:
        """Writes the scores of the rows' prompts into the first columns of `scores`."""
        keys_PGLD = self._prompts(self.wave.keys[layer])
        (P, W), (_, G, L, D) = self.shape_PW, keys_PGLD.shape
        q = q_BHD if self.all_rows else q_BHD.index_select(0, self.rows)
        q = (q if self.in_order else q.index_select(0, self.place_PW)).view(P, W, G, -1, D)
        q = q.transpose(1, 2).reshape(P * G, -1, D)
        found = scaled_product(q, keys_PGLD.flatten(0, 1).transpose(1, 2), scale).view(P, G, W, -1, L)
        found = found.transpose(1, 2).reshape(P * W, G, -1, L)
        if not self.in_order:
            found = found.index_select(0, self.back_B)
        if self.all_rows:
            scores_BGRX[..., :L] = found
        else:
            scores_BGRX[self.rows, :, :, :L] = found

    def add_values(self, layer: int, p_BGRX: torch.Tensor, out_BHD: torch.Tensor) -> None:
        """Adds the values of the rows' prompts, weighted, to `out`."""
        values_PGLD = self._prompts(self.wave.values[layer])
        (P, W), (_, G, L, D) = self.shape_PW, values_PGLD.shape
        p = p_BGRX[..., :L] if self.all_rows else p_BGRX[..., :L].index_select(0, self.rows)
        if not self.in_order:
            p = p.index_select(0, self.place_PW)
        p = p.reshape(P, W, G, -1, L).transpose(1, 2).reshape(P * G, -1, L)
        found = torch.bmm(p, values_PGLD.flatten(0, 1)).view(P, G, W, -1, D).transpose(1, 2)
        found = found.reshape(P * W, -1, D)
        if not self.in_order:
            found = found.index_select(0, self.back_B)
        if self.all_rows:
            out_BHD += found
        else:
            out_BHD.index_add_(0, self.rows, found)

    def _prompts(self, cache_PGLD: torch.Tensor) -> torch.Tensor:
        cache = cache_PGLD if self.prompts_P is None else cache_PGLD.index_select(0, self.prompts_P)
        return cache[:, :, : self.length]
