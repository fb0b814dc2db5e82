"""The engine: one thread that schedules, runs and commits, and hands what happened to each request's sink.

Anyone may submit and cancel from any thread. Both take effect at the next step boundary: nothing changes under a step.
"""
from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from ..backends.base import Backend
from ..errors import EngineFailed, FieldInvalid, PyruntimeError, QueueFull
from ..plan import Sample
from ..tokenizer import Detokenizer, Tokenizer
from ..types import SAMPLING, Completion, Delta, FinishReason, SamplingParams, Timings, TokenLogprob, Usage
from .events import Done, Event, Failed, PrefillProgress, Sink, Started
from .scheduler import Flagged, Scheduler, Sequence, Step

MAX_CANDIDATES = 16
log = logging.getLogger("pyruntime.engine")

#: what a sampling parameter means when neither the request nor the model says anything
NEUTRAL: dict[str, float] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
    "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine is doing. Counters count from its start; tokens_per_second is the rate of the last seconds."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    tokens_per_second: float
    steps: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int
    requests: int


@dataclass(slots=True, eq=False)
class _Candidate:
    """One of a request's answers in the making."""

    request: _Request
    index: int
    sequence: Sequence
    text: Detokenizer
    limit: int                                   # most generated tokens
    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    admitted: float = 0.0
    first_token: float = 0.0
    over: bool = False


@dataclass(slots=True, eq=False)
class _Request:
    id: str
    prompt: list[int]
    params: SamplingParams
    sink: Sink
    submitted: float
    deadline: float                              # soft end, monotonic seconds; inf = none
    place_by: float                              # must have a place by then; inf = no matter
    candidates: list[_Candidate] = field(default_factory=list)
    scores: list[TokenLogprob] | None = None     # the prompt's, as they come
    started: bool = False
    stop: FinishReason | None = None             # asked from outside; takes effect at the next boundary


class Handle:
    """A submitted request."""

    __slots__ = ("request_id", "_engine", "_request")

    def __init__(self, engine: Engine, request: _Request) -> None:
        self.request_id = request.id
        self._engine, self._request = engine, request

    def cancel(self) -> None:
        """End the request at the next step boundary: its pages come free, its unfinished candidates end as CANCELLED.

        Any thread, any state, any number of times."""
        self._engine._stop(self._request, FinishReason.CANCELLED)

    def drain(self) -> None:
        """The same, but unfinished candidates end as DRAINED: the answer so far is meant to be used."""
        self._engine._stop(self._request, FinishReason.DRAINED)

    @property
    def done(self) -> bool:
        """Whether every candidate has ended."""
        return all(c.over for c in self._request.candidates)


class Engine:
    """Runs requests over one backend. Closes the backend when closed itself.

    defaults: the model's own sampling parameters (names of SamplingParams). context: most tokens of prompt and answer.
    max_running: sequences computed at once; max_waiting: more that may wait; one more is QueueFull.
    chunk: most prompt tokens in one step. chunk_beside: beside running answers, so that these go on evenly: this many, or
    one for every request that runs or waits (at most `max_running`) if that is more; None: `chunk`.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, *, defaults: Mapping[str, float] | None = None,
                 context: int | None = None, max_running: int = 8, max_waiting: int = 1024, chunk: int = 512,
                 chunk_beside: int | None = None, name: str = "model") -> None:
        plan = backend.plan
        self.backend, self.tokenizer, self.name = backend, tokenizer, name
        self.vocab = plan.vocab
        self.scheduler = Scheduler(
            backend.pages, groups=plan.groups, context=min(context or plan.context, plan.context),
            max_running=min(max_running, backend.histories), max_tokens=backend.max_tokens, max_rows=backend.max_rows, chunk=chunk,
            beside=chunk_beside)
        self.context = self.scheduler.context
        self.max_running, self.max_waiting = self.scheduler.max_running, max_waiting
        self.defaults = {**NEUTRAL, **(defaults or {})}
        SamplingParams(**{k: v for k, v in self.defaults.items()})  # type: ignore[arg-type]  # checks every value
        self._ends = frozenset(i for i in tokenizer.end_ids if 0 <= i < plan.vocab)
        self._logits = next((op.logits for op in plan.ops if isinstance(op, Sample)), "logits")
        self._pid = os.getpid()
        self._wake = threading.Condition()
        # under _wake:
        self._inbox: list[_Request] = []
        self._requests: dict[str, _Request] = {}     # every unfinished one
        self._outstanding = 0                        # unfinished candidates
        self._draining = self._closing = False
        self._working = False                        # between taking requests and handing their events over
        self._ids = count(1)
        # the engine thread's own:
        self._outbox: dict[int, tuple[Sink, list[tuple[str, int, Event]]]] = {}
        self._rates: deque[tuple[float, int]] = deque(maxlen=256)
        self._counts = dict.fromkeys(("steps", "prompt_tokens", "generated_tokens", "requests"), 0)
        self._progress = time.monotonic()
        self.failure: str | None = None              # why the last step failed; None once a step succeeded again
        self._thread = threading.Thread(target=self._loop, name=f"pyruntime engine {name}", daemon=True)
        self._thread.start()

    # ---- any thread ----

    def submit(self, prompt_ids: Seq[int], params: SamplingParams | None = None, *, sink: Sink, request_id: str = "",
               n: int = 1, priority: int = 0, max_wait: float | None = None) -> Handle:
        """Check a request and put it in line; its events go to `sink`. max_wait: seconds until it must have a place.

        FieldInvalid, ContextLengthExceeded, QueueFull, DRAINING or EngineFailed at once; afterwards errors are events."""
        self._check_process()
        params = params or SamplingParams()
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_CANDIDATES:
            raise FieldInvalid(f"n is {n!r}; 1 to {MAX_CANDIDATES} candidates are possible", field="n")
        if params.stop and not self.tokenizer.vocab_size:
            raise FieldInvalid("stop is text, and this model has no tokenizer; leave it out", field="stop")
        now = time.monotonic()
        prompt = self._checked_prompt(prompt_ids)
        request = _Request(
            "", prompt, params, sink, now,
            deadline=now + params.time_budget if params.time_budget is not None else float("inf"),
            place_by=now + max_wait if max_wait is not None else float("inf"),
            scores=[TokenLogprob(prompt[0], None, 0)] if params.prompt_logprobs else None)
        for index, sequence in enumerate(self._sequences(request, n, priority)):
            text = Detokenizer(self.tokenizer, stop=params.stop, include_stop=params.include_stop,
                               skip_special=params.skip_special)
            limit = min(params.max_tokens or self.context, self.context - len(request.prompt))
            sequence.owner = _Candidate(request, index, sequence, text, limit)
            request.candidates.append(sequence.owner)
        with self._wake:
            if self._closing:
                raise EngineFailed(f"the engine of '{self.name}' is closed; load the model again")
            if self._draining:
                raise PyruntimeError(f"'{self.name}' is draining and takes no new requests; ask another server or later",
                                     reason="DRAINING")
            if self._outstanding + n > self.max_running + self.max_waiting:
                raise QueueFull(f"'{self.name}' has {self._outstanding} requests at work or waiting, its most is "
                                f"{self.max_running + self.max_waiting}; try again later")
            request.id = request_id or f"r{next(self._ids)}"
            if request.id in self._requests:
                raise FieldInvalid(f"request id {request.id!r} is at work already; choose another", field="request_id")
            if not self._requests:
                self._progress = time.monotonic()    # idle until now
            self._requests[request.id] = request
            self._outstanding += n
            self._inbox.append(request)
            self._wake.notify()
        return Handle(self, request)

    def cancel(self, request_id: str) -> bool:
        """Cancel by id; False when no such request is at work."""
        self._check_process()
        with self._wake:
            request = self._requests.get(request_id)
        if request is not None:
            self._stop(request, FinishReason.CANCELLED)
        return request is not None

    @property
    def healthy(self) -> bool:
        """False after a failed step until one succeeds again, and when closed."""
        return self.failure is None and self._thread.is_alive() and not self._closing

    @property
    def last_step_age(self) -> float:
        """Seconds since the last finished step while there is work; 0.0 when idle."""
        return time.monotonic() - self._progress if self._requests else 0.0

    def stats(self) -> Stats:
        """Figures of this moment."""
        s, rates, now = self.scheduler, list(self._rates), time.monotonic()
        recent = [(t, n) for t, n in rates if now - t < 5.0]
        rate = sum(n for _, n in recent[1:]) / (now - recent[0][0]) if len(recent) > 1 else 0.0
        running = len(s.running)
        return Stats(running=running, waiting=max(0, self._outstanding - running), pages_used=s.pages_used,
                     pages_total=s.pages_total, tokens_per_second=rate, preemptions=s.preemptions, **self._counts)

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the others; after `timeout` seconds end them as DRAINED. True = none was cut."""
        self._check_process()
        with self._wake:
            self._draining = True
            if self._wake.wait_for(self._idle, timeout):
                return True
            left = list(self._requests.values())
        for request in left:
            self._stop(request, FinishReason.DRAINED)
        with self._wake:
            self._wake.wait_for(self._idle)
        return False

    def _idle(self) -> bool:
        return not (self._requests or self._working)

    def close(self) -> None:
        """Cancel everything, end the thread, close the backend. In a forked child: nothing, it is the parent's."""
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return
        with self._wake:
            first, self._closing = not self._closing, True
            for request in self._requests.values():
                request.stop = request.stop or FinishReason.CANCELLED
            self._wake.notify_all()
        self._thread.join()
        if first:
            self.backend.close()

    # ---- checks ----

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineFailed(f"'{self.name}' was loaded in process {self._pid} and this is its fork {os.getpid()}: threads do "
                               "not survive a fork; load the model in the child")

    def _ids_known(self, name: str, ids: Seq[int]) -> None:
        for i in ids:
            if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < self.vocab:
                raise FieldInvalid(f"{name} has token id {i!r}; '{self.name}' knows 0 to {self.vocab - 1}", field=name)

    def _checked_prompt(self, prompt_ids: Seq[int]) -> list[int]:
        if isinstance(prompt_ids, (str, bytes)) or not hasattr(prompt_ids, "__len__"):
            raise FieldInvalid("prompt must be a list of token ids", field="prompt")
        if not len(prompt_ids):
            raise FieldInvalid("prompt is empty; give at least one token", field="prompt")
        self.scheduler.fits(len(prompt_ids))
        if isinstance(prompt_ids, np.ndarray):
            prompt_ids = prompt_ids.tolist()
        if set(map(type, prompt_ids)) != {int} or min(prompt_ids) < 0 or max(prompt_ids) >= self.vocab:
            self._ids_known("prompt", prompt_ids)    # says which, or lets numpy's integers pass
        return list(map(int, prompt_ids))

    def _sequences(self, request: _Request, n: int, priority: int) -> list[Sequence]:
        """One sequence per candidate, alike but for the candidate's number in the random stream's key."""
        p = request.params
        for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
            self._ids_known(name, tuple(getattr(p, name)))
        value = {name: neutral if (own := getattr(p, name)) is None else own for name, neutral in self.defaults.items()}
        row = np.zeros(1, SAMPLING)
        row["seed"] = random.getrandbits(64) if p.seed is None else p.seed
        for name in ("temperature", "top_p", "min_p", "typical_p", "top_k"):
            row[name] = value[name]
        for name in ("repetition", "presence", "frequency"):
            row[name] = value[f"{name}_penalty"]
        row["allowed"] = -1
        row["logprobs"] = -1 if p.logprobs is None else p.logprobs
        bias = None
        if p.logit_bias:
            bias = np.array(list(p.logit_bias), np.int32), np.array(list(p.logit_bias.values()), np.float32)
        mask = self._mask(p.allowed_token_ids) if p.allowed_token_ids else None
        early = None
        if p.min_tokens and (ends := (frozenset() if p.ignore_end else self._ends) | set(p.stop_token_ids)):
            early = ~self._mask(ends) & (self._mask(range(self.vocab)) if mask is None else mask)
            if not early.any():
                raise FieldInvalid("min_tokens forbids the end and stop tokens at first, and allowed_token_ids has no others; "
                                   "allow one more or drop min_tokens", field="min_tokens")
        sequences = []
        for index in range(n):
            row = row.copy()
            row["candidate"] = index
            sequences.append(Sequence(
                list(request.prompt), row, priority=priority, bias=bias, mask=mask, early_mask=early, min_tokens=p.min_tokens,
                penalized=value["repetition_penalty"] != 1 or bool(value["presence_penalty"] or value["frequency_penalty"]),
                scored=0 if p.prompt_logprobs and not index else -1))
        return sequences

    def _mask(self, ids: Collection[int]) -> np.ndarray:
        """u8 [ceil(vocab / 8)]: bit t of byte t // 8 set for every id."""
        bits = np.zeros(-(-self.vocab // 8) * 8, np.uint8)
        bits[np.fromiter(ids, np.int64, len(ids))] = 1
        return np.packbits(bits, bitorder="little")

    def _stop(self, request: _Request, reason: FinishReason) -> None:
        if os.getpid() != self._pid:
            return
        with self._wake:
            if request.stop is None:
                request.stop = reason
                self._wake.notify_all()

    # ---- the engine thread ----

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._working = False
                if not self._requests:
                    self._wake.notify_all()
                    self._wake.wait_for(lambda: self._requests or self._closing)
                if not self._requests:
                    return
                self._working = True
                arrived, self._inbox = self._inbox, []
                requests = list(self._requests.values())
            for request in arrived:
                self._counts["requests"] += 1
                for candidate in request.candidates:
                    self.scheduler.add(candidate.sequence)
            try:
                self._end_early(requests)
                self._step()
            except Exception as error:  # whatever went wrong, the engine and the other requests live
                self._fail_all(error)
            self._hand_over()
            self._progress = time.monotonic()

    def _end_early(self, requests: list[_Request]) -> None:
        """What was cancelled, drained or is out of time ends before the step."""
        now = time.monotonic()
        for request in requests:
            if request.stop is not None or now >= request.deadline:
                for candidate in request.candidates:
                    self._finish(candidate, request.stop or FinishReason.TIME)
            elif now >= request.place_by and not request.started and request.candidates[0].sequence.seat < 0:
                self._fail(request, PyruntimeError(
                    f"request '{request.id}' waited {now - request.submitted:.1f} s without getting a place; try again later",
                    reason="QUEUE_WAIT_EXCEEDED"))

    def _step(self) -> None:
        step = self.scheduler.schedule()
        if step is None:
            return
        now = time.monotonic()
        for sequence in step.admitted:
            self._admit(sequence, now)
        self.backend.run(step.batch)
        sampled = self.backend.sampled()
        self._score(step)
        self.scheduler.commit(step, sampled["token"])
        self.failure = None
        self._counts["steps"] += 1
        self._prefill_events(step)
        before = self._counts["generated_tokens"]
        now = time.monotonic()
        flags = sampled["flags"].tolist()
        for flagged in step.flagged:
            if flagged.samples and not flagged.sequence.owner.over:
                row = flagged.row + flagged.scores
                if flags[row] & 1:
                    self._fail_not_finite(flagged.sequence.owner)
                else:
                    self._accept(flagged.sequence.owner, sampled, row, now)
        self._rates.append((now, self._counts["generated_tokens"] - before))

    def _admit(self, sequence: Sequence, now: float) -> None:
        candidate: _Candidate = sequence.owner
        request = candidate.request
        candidate.admitted = candidate.admitted or now
        if not request.started:
            request.started = True
            if request.scores is None:
                self._emit(candidate, Started(sequence.prompt, sequence.cached))
        if sequence.penalized:
            tokens = np.array(sequence.tokens, np.int32)
            self.backend.history_reset(sequence.seat)
            self.backend.history_extend(sequence.seat, tokens[: sequence.prompt], False)
            if sequence.generated:
                self.backend.history_extend(sequence.seat, tokens[sequence.prompt :], True)

    def _prefill_events(self, step: Step) -> None:
        """What this step computed of prompts, as events and counts."""
        for sequence, computed in step.parts:
            candidate: _Candidate = sequence.owner
            first = sequence.computed - computed
            if first >= sequence.prompt or candidate.over:
                continue
            done = min(sequence.computed, sequence.prompt)
            self._counts["prompt_tokens"] += done - first
            request = candidate.request
            if candidate.index == 0 and not candidate.first_token:
                if request.scores is None:
                    self._emit(candidate, PrefillProgress(done, sequence.prompt))
                elif done == sequence.prompt:
                    self._emit(candidate, Started(sequence.prompt, sequence.cached, tuple(request.scores)))

    def _score(self, step: Step) -> None:
        """Log-probabilities of the prompt's own tokens, from the raw logits of their rows."""
        for f in [f for f in step.flagged if f.scores]:
            request: _Request = f.sequence.owner.request
            assert request.scores is not None
            request.scores += _prompt_logprobs(f, request.prompt, self.backend.slot(self._logits), self.backend.sampled())

    def _accept(self, candidate: _Candidate, sampled: np.ndarray, row: int, now: float) -> None:
        """One more token of an answer: its text, its delta, and whether it was the last."""
        sequence, params = candidate.sequence, candidate.request.params
        token = sequence.tokens[-1]
        if not candidate.first_token:
            candidate.first_token = now
        self._counts["generated_tokens"] += 1
        if sequence.penalized:
            self.backend.history_extend(sequence.seat, np.array([token], np.int32), True)
        logprobs: tuple[TokenLogprob, ...] = ()
        if params.logprobs is not None:
            logprobs = (_logprob(sampled[row]),)
            candidate.logprobs += logprobs
        reason: FinishReason | None = None
        matched: str | int | None = None
        if token in params.stop_token_ids:
            reason, matched = FinishReason.STOP_TOKEN, token
        elif token in self._ends and not params.ignore_end:
            reason = FinishReason.END
        # rows of the embedding past the vocabulary are padding: they have no text
        shown = (reason is None or params.include_stop) and token < self.tokenizer.vocab_size
        text = candidate.text.feed(token) if shown else ""
        if reason is None:
            if candidate.text.stopped is not None:
                reason, matched = FinishReason.STOP_STRING, candidate.text.stopped
            elif sequence.generated >= candidate.limit:
                reason = FinishReason.LENGTH if sequence.generated == params.max_tokens else FinishReason.CONTEXT
        if reason is not None:
            text += candidate.text.finish()
        if text:
            candidate.parts.append(text)
        self._emit(candidate, Delta(text, (token,), logprobs))
        if reason is not None:
            self._finish(candidate, reason, matched)

    def _fail_not_finite(self, candidate: _Candidate) -> None:
        request = candidate.request
        self._fail(request, EngineFailed(
            f"request '{request.id}': the logits of output token {candidate.sequence.generated + 1} are not finite; "
            f"the weights of '{self.name}' are damaged or overflow: check or fetch the file again"))

    def _finish(self, candidate: _Candidate, reason: FinishReason, matched: str | int | None = None) -> None:
        """End a candidate with the answer it has."""
        if candidate.over:
            return
        request, sequence, now = candidate.request, candidate.sequence, time.monotonic()
        if rest := candidate.text.finish():
            candidate.parts.append(rest)
            self._emit(candidate, Delta(rest))
        first = candidate.first_token or now
        admitted = candidate.admitted or now
        self._emit(candidate, Done(Completion(
            text="".join(candidate.parts), token_ids=tuple(sequence.tokens[sequence.prompt :]), finish_reason=reason,
            logprobs=tuple(candidate.logprobs) if request.params.logprobs is not None else None,
            usage=Usage(sequence.prompt, sequence.generated, sequence.cached),
            timings=Timings(queued=admitted - request.submitted, prefill=first - admitted,
                            first_token=first - request.submitted, decode=now - first),
            matched=matched, prompt_token_ids=tuple(request.prompt),
            prompt_logprobs=None if request.scores is None else tuple(request.scores), request_id=request.id)))
        self._over(candidate)

    def _fail(self, request: _Request, error: PyruntimeError) -> None:
        """End all of a request's candidates with an error."""
        for candidate in request.candidates:
            if not candidate.over:
                self._emit(candidate, Failed(error))
                self._over(candidate)

    def _fail_all(self, error: Exception) -> None:
        """A step failed: whoever took part ends with EngineFailed; the waiting ones stay in line."""
        log.exception("a step of '%s' failed", self.name)
        self.failure = f"{type(error).__name__}: {error}"
        reported = EngineFailed(f"a step of '{self.name}' failed ({self.failure}); see the log, then try again")
        for sequence in self.scheduler.running.copy():
            self._fail(sequence.owner.request, reported)

    def _over(self, candidate: _Candidate) -> None:
        candidate.over = True
        self.scheduler.finish(candidate.sequence)
        request = candidate.request
        with self._wake:
            self._outstanding -= 1
            if all(c.over for c in request.candidates):
                del self._requests[request.id]

    def _emit(self, candidate: _Candidate, event: Event) -> None:
        sink = candidate.request.sink
        self._outbox.setdefault(id(sink), (sink, []))[1].append((candidate.request.id, candidate.index, event))

    def _hand_over(self) -> None:
        """Every sink gets the step's events in one call; a sink that raises loses its requests, nobody else's."""
        outbox, self._outbox = self._outbox, {}
        for sink, events in outbox.values():
            try:
                sink.put(events)
            except Exception:  # the sink is the caller's code
                log.exception("a sink of '%s' failed; its requests are cancelled", self.name)
                for request in list(self._requests.values()):
                    if request.sink is sink:
                        self._stop(request, FinishReason.CANCELLED)


def _logprob(row: np.void) -> TokenLogprob:
    n = int(row["top_count"])
    return TokenLogprob(int(row["token"]), float(row["logprob"]), int(row["rank"]),
                        tuple(zip(row["top_ids"][:n].tolist(), row["top_logprobs"][:n].tolist(), strict=True)))


def _prompt_logprobs(f: Flagged, prompt: list[int], logits: np.ndarray, sampled: np.ndarray) -> list[TokenLogprob]:
    """Prompt tokens first + 1 ... first + scores, each as the row of the token before it sees it. logits [rows][vocab]."""
    out = []
    for i in range(f.scores):
        row, token = logits[f.row + i], prompt[f.first + i + 1]
        peak = float(row.max())
        total = peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))
        rank = 1 + int((row > row[token]).sum())
        out.append(TokenLogprob(token, float(row[token]) - total, rank, _logprob(sampled[f.row + i]).top))
    return out
