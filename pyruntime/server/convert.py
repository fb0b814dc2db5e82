"""Protocol messages to parameters and results to messages. Every number a client sends is checked on this way in."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from .. import types
from ..errors import FieldInvalid, PyruntimeError
from .pb import chat_pb2, common_pb2, generation_pb2

MAX_CANDIDATES = 16
MAX_MESSAGES = 4096
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"}

#: Parameter -> field of a request. An error about the one is told about the other.
FIELDS = {
    **{name: f"sampling.{name}" for name in (
        "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "allowed_token_ids", "seed")},
    "max_tokens": "stopping.max_output_tokens", "min_tokens": "stopping.min_output_tokens",
    "stop": "stopping.stop_sequences", "stop_token_ids": "stopping.stop_token_ids",
    "time_budget": "stopping.time_budget", "include_stop": "stopping.include_stop_sequence",
    "ignore_end": "stopping.ignore_end_tokens", "logprobs": "output.top_logprobs",
    "prompt_logprobs": "output.prompt_logprobs", "skip_special": "output.skip_special_tokens",
    "n": "candidate_count",
}

FINISH = {
    types.FinishReason.END: common_pb2.FINISH_REASON_END_OF_SEQUENCE,
    types.FinishReason.STOP_STRING: common_pb2.FINISH_REASON_STOP_SEQUENCE,
    types.FinishReason.STOP_TOKEN: common_pb2.FINISH_REASON_STOP_TOKEN,
    types.FinishReason.LENGTH: common_pb2.FINISH_REASON_MAX_OUTPUT_TOKENS,
    types.FinishReason.CONTEXT: common_pb2.FINISH_REASON_CONTEXT_FULL,
    types.FinishReason.TIME: common_pb2.FINISH_REASON_TIME_BUDGET,
    types.FinishReason.DRAINED: common_pb2.FINISH_REASON_DRAINED,
}

ROLES = {chat_pb2.ROLE_SYSTEM: "system", chat_pb2.ROLE_USER: "user", chat_pb2.ROLE_ASSISTANT: "assistant"}


def told_of(error: PyruntimeError, prefix: str, prompt: str) -> PyruntimeError:
    """The same error about the request's field instead of the parameter: `temperature` -> `sampling.temperature`.

    prefix: what stands before every field, "request." in a stream. prompt: the field that holds the prompt."""
    if not error.field:
        return error
    field = prefix + (prompt if error.field == "prompt" else FIELDS.get(error.field, error.field))
    message = str(error)
    if message.startswith(error.field + " "):
        message = field + message[len(error.field):]
    return type(error)(message, field=field, reason=error.reason)


def sampling_params(request: generation_pb2.GenerateRequest | chat_pb2.ChatRequest) -> types.SamplingParams:
    """The request's Sampling, Stopping and OutputOptions; unset stays None. FieldInvalid names the parameter."""
    sampling, stopping, output = request.sampling, request.stopping, request.output
    if output.top_logprobs and not output.logprobs:
        raise FieldInvalid(f"logprobs is {output.top_logprobs} while output.logprobs is off; turn that on", field="logprobs")
    optional = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
                "frequency_penalty", "seed")
    return types.SamplingParams(
        **{name: getattr(sampling, name) if sampling.HasField(name) else None for name in optional},
        logit_bias=dict(sampling.logit_bias),
        allowed_token_ids=tuple(sampling.allowed_token_ids),
        max_tokens=stopping.max_output_tokens if stopping.HasField("max_output_tokens") else None,
        min_tokens=stopping.min_output_tokens,
        stop=tuple(stopping.stop_sequences),
        stop_token_ids=tuple(stopping.stop_token_ids),
        include_stop=stopping.include_stop_sequence,
        ignore_end=stopping.ignore_end_tokens,
        time_budget=seconds(stopping.time_budget) if stopping.HasField("time_budget") else None,
        logprobs=output.top_logprobs if output.logprobs else None,
        prompt_logprobs=output.prompt_logprobs,
        skip_special=output.skip_special_tokens if output.HasField("skip_special_tokens") else True,
    )


def candidates(request: generation_pb2.GenerateRequest | chat_pb2.ChatRequest) -> int:
    """How many answers are wanted, 1 to 16."""
    n = request.candidate_count or 1
    if n > MAX_CANDIDATES:
        raise FieldInvalid(f"n is {n}; at most {MAX_CANDIDATES}", field="n")
    return n


def messages(conversation: Iterable[chat_pb2.ChatMessage]) -> list[dict[str, str]]:
    """A conversation as chat templates read it."""
    out = []
    for i, message in enumerate(conversation):
        if message.role not in ROLES:
            raise FieldInvalid(f"messages[{i}].role is {message.role}; it must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT",
                               field=f"messages[{i}].role")
        out.append({"role": ROLES[message.role], "content": message.text})
    if not 1 <= len(out) <= MAX_MESSAGES:
        raise FieldInvalid(f"messages has {len(out)} entries; it must have 1 to {MAX_MESSAGES}", field="messages")
    return out


def template_arguments(request) -> dict[str, object]:
    """Extra template variables, plain values; FieldInvalid for a name that has a meaning of its own."""
    found = MessageToDict(request.template_arguments) if request.HasField("template_arguments") else {}
    if taken := sorted(RESERVED & found.keys()):
        raise FieldInvalid(f"template_arguments has {taken[0]!r}, which the server sets itself; leave it out",
                           field="template_arguments")
    return found


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos * 1e-9


def nonnegative_seconds(message, field: str, path: str) -> float | None:
    """A duration field in seconds, None when unset; FieldInvalid when negative. path: the field's name in the error."""
    if not message.HasField(field):
        return None
    value = seconds(getattr(message, field))
    if value < 0:
        raise FieldInvalid(f"{path} is {value:g} s; it must not be negative", field=path)
    return value


def duration(value: float) -> Duration:
    """Seconds as a duration."""
    whole = int(value)
    return Duration(seconds=whole, nanos=int((value - whole) * 1e9))


def token_logprobs(positions: Iterable[types.TokenLogprob], piece: Callable[[int], bytes]) -> list[common_pb2.TokenLogprob]:
    """Positions with each token's exact bytes."""
    return [common_pb2.TokenLogprob(
        token_id=p.token_id, token_bytes=piece(p.token_id), logprob=p.logprob, rank=p.rank,
        alternatives=[common_pb2.TokenLogprob.Alternative(token_id=i, token_bytes=piece(i), logprob=v) for i, v in p.top],
    ) for p in positions]


def finish(completion: types.Completion) -> common_pb2.Finish:
    """Why a candidate stopped, with what matched."""
    if completion.finish_reason not in FINISH:
        raise PyruntimeError("the server stops now and cut this answer off; ask another server or later", reason="DRAINING")
    out = common_pb2.Finish(reason=FINISH[completion.finish_reason])
    if isinstance(completion.matched, str):
        out.stop_sequence = completion.matched
    elif completion.matched is not None:
        out.stop_token_id = completion.matched
    return out


def usage(completions: list[types.Completion]) -> common_pb2.Usage:
    """Tokens of all candidates; the prompt counts once."""
    first = completions[0].usage
    return common_pb2.Usage(prompt_tokens=first.prompt_tokens, cached_prompt_tokens=first.cached_prompt_tokens,
                            output_tokens=sum(c.usage.output_tokens for c in completions))


def timings(completions: list[types.Completion]) -> generation_pb2.Timings:
    """Of the request: up to its first token, then until its last candidate is done."""
    t = completions[0].timings
    return generation_pb2.Timings(
        queued=duration(t.queued), prefill=duration(t.prefill), time_to_first_token=duration(t.first_token),
        decode=duration(max(c.timings.decode for c in completions)))
