"""The service over a real connection: what a client sees is what the contract promises."""
from __future__ import annotations

import math
import threading
import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from server_fixture import serving
from tiny_model import CHATML, write_tiny

from pyruntime import LLM, SamplingParams
from pyruntime.client import Client
from pyruntime.errors import REASONS, ContextLengthExceeded, FieldInvalid, ModelNotFound, PyruntimeError
from pyruntime.server import status
from pyruntime.server.pb import (
    chat_pb2,
    chat_pb2_grpc,
    common_pb2,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)

Request, StreamRequest = generation_pb2.GenerateRequest, generation_pb2.StreamGenerateRequest
Sampling, Stopping, Output = generation_pb2.Sampling, generation_pb2.Stopping, generation_pb2.OutputOptions


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("served") / "tiny.gguf", extra={"tokenizer.chat_template": CHATML + "{{ note }}"})
    with LLM(path, max_waiting=64) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm):
    with serving({"tiny": llm}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, timeout=60) as client:
        yield client


@pytest.fixture
def stub(client):
    return generation_pb2_grpc.GenerationServiceStub(client.channel)


def request(text="hello", tokens=24, **more):
    stopping = Stopping(max_output_tokens=tokens, ignore_end_tokens=True)
    return Request(text=text, stopping=stopping, sampling=Sampling(seed=7), **more)


def texts_of(events, part="delta"):
    out = {}
    for event in events:
        if event.HasField(part):
            out[event.delta.index] = out.get(event.delta.index, "") + event.delta.text
    return out


# ---- answers ----


def test_the_answer_is_the_engines_own(client, llm):
    own = llm.generate("hello", SamplingParams(max_tokens=24, seed=7, ignore_end=True, logprobs=3, prompt_logprobs=True))
    over = client.generate("hello", max_tokens=24, seed=7, ignore_end=True, logprobs=3, prompt_logprobs=True, token_ids=True,
                           timings=True)
    candidate = over.candidates[0]
    assert candidate.text == own.text and tuple(candidate.token_ids) == own.token_ids
    assert candidate.finish.reason == common_pb2.FINISH_REASON_MAX_OUTPUT_TOKENS
    assert (over.usage.prompt_tokens, over.usage.output_tokens) == (own.usage.prompt_tokens, 24)
    assert [p.token_id for p in candidate.logprobs] == list(own.token_ids)
    for position, wanted in zip(candidate.logprobs, own.logprobs, strict=True):
        assert math.isclose(position.logprob, wanted.logprob, rel_tol=1e-6) and position.rank == wanted.rank
        assert position.token_bytes == llm.tokenizer.token_bytes(position.token_id)
        assert [a.token_id for a in position.alternatives] == [i for i, _ in wanted.top]
    assert not over.prompt_logprobs[0].HasField("logprob") and over.prompt_logprobs[1].HasField("logprob")
    assert over.timings.time_to_first_token.ToTimedelta() <= over.timings.time_to_first_token.ToTimedelta() * 2
    assert over.model == "tiny" and len(over.model_revision) == 16 and over.request_id


@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(0, 9), delay=st.sampled_from([None, 0.0, 0.02]), n=st.integers(1, 3), seed=st.integers(0, 2**64 - 1),
       stop=st.sampled_from([[], ["\x10"], ["a", "�"]]), ids=st.booleans(), slow=st.booleans())
def test_deltas_joined_are_the_unary_text(client, tokens, delay, n, seed, stop, ids, slow):
    """Whatever the size of messages and the reader's pace; events in the contract's order, exactly one end."""
    params = dict(max_tokens=20, seed=seed, n=n, stop=stop, token_ids=ids, request_id="mine")
    whole = client.generate("say", **params)
    events = []
    for event in client.stream_generate("say", tokens_per_message=tokens, max_delay=delay, prefill_progress=True, **params):
        events.append(event)
        if slow:
            time.sleep(0.005)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "done"
    assert kinds.count("started") == kinds.count("done") == 1 and kinds.count("candidate_done") == n
    progress = [i for i, kind in enumerate(kinds) if kind == "prefill_progress"]
    assert progress == list(range(1, 1 + len(progress))) and progress
    assert events[0].started.request_id == whole.request_id == "mine"
    for candidate in whole.candidates:
        deltas = [e.delta for e in events if e.HasField("delta") and e.delta.index == candidate.index]
        assert "".join(d.text for d in deltas) == candidate.text
        assert [i for d in deltas for i in d.token_ids] == list(candidate.token_ids)
        if tokens > 1 and delay is None:
            assert all(d.output_tokens >= tokens for d in deltas[:-1])
    last = {e.candidate_done.index: i for i, e in enumerate(events) if e.HasField("candidate_done")}
    assert all(i < last[e.delta.index] for i, e in enumerate(events) if e.HasField("delta"))
    finishes = {e.candidate_done.index: e.candidate_done.finish for e in events if e.HasField("candidate_done")}
    assert finishes == {c.index: c.finish for c in whole.candidates}
    assert sum(e.delta.output_tokens for e in events if e.HasField("delta")) == whole.usage.output_tokens
    assert events[-1].done.usage.output_tokens == whole.usage.output_tokens


def test_a_delta_never_holds_the_start_of_a_stop_sequence(client):
    whole = client.generate("tell", max_tokens=40, seed=3, ignore_end=True).candidates[0].text
    at = next(i for i in range(8, len(whole) - 3) if whole.index(whole[i:i + 3]) == i)
    stop = whole[at:at + 3]
    for include in (False, True):
        seen = ""
        for delta in client.stream("tell", max_tokens=40, seed=3, ignore_end=True, stop=[stop], include_stop=include):
            seen += delta.text
            assert whole.startswith(seen) and len(seen) <= at + 3 * include
        assert seen == whole[: at + 3 * include]
    finish = client.generate("tell", max_tokens=40, seed=3, ignore_end=True, stop=stop).candidates[0].finish
    assert finish.reason == common_pb2.FINISH_REASON_STOP_SEQUENCE and finish.stop_sequence == stop


def test_stop_tokens_and_the_end_token(client):
    ids = client.generate("x", max_tokens=30, seed=5, token_ids=True, ignore_end=True).candidates[0].token_ids
    finish = client.generate("x", max_tokens=30, seed=5, stop_token_ids=[ids[9]], ignore_end=True).candidates[0].finish
    assert finish.reason == common_pb2.FINISH_REASON_STOP_TOKEN and finish.stop_token_id == ids[9]
    end = client.models()[0].end_token_ids[0]
    only = client.generate("x", max_tokens=30, allowed_token_ids=[end])
    assert only.candidates[0].finish.reason == common_pb2.FINISH_REASON_END_OF_SEQUENCE and only.candidates[0].text == ""


def test_text_ids_and_usage_only_when_wanted(stub):
    quiet = request()
    quiet.output.text = False
    quiet.output.token_ids = True
    answer = stub.Generate(quiet)
    assert answer.candidates[0].text == "" and len(answer.candidates[0].token_ids) == 24 and not answer.HasField("timings")
    events = list(stub.StreamGenerate(StreamRequest(request=quiet, stream=generation_pb2.StreamOptions(omit_usage=True))))
    assert texts_of(events) == {0: ""} and not events[-1].done.HasField("usage")
    assert [i for e in events for i in e.delta.token_ids] == list(answer.candidates[0].token_ids)


def test_zero_is_a_value_and_unset_is_the_models_default(tmp_path):
    """Unset takes the model's own temperature, here 0; what is set counts, zeros too."""
    path = write_tiny(tmp_path / "greedy.gguf", extra={"general.sampling.temp": 0.0})
    with LLM(path) as llm, serving({"m": llm}) as server, Client(server.address) as client:
        greedy = client.generate("a", max_tokens=12, ignore_end=True, temperature=0.0, top_k=0).candidates[0].text
        unset = {client.generate("a", max_tokens=12, ignore_end=True, seed=i).candidates[0].text for i in range(3)}
        assert unset == {greedy}
        warm = {client.generate("a", max_tokens=12, ignore_end=True, seed=i, temperature=2.0, top_k=0).candidates[0].text
                for i in range(3)}
        assert len(warm) > 1


def test_the_same_seed_gives_the_same_tokens_alone_and_together(client):
    alone = [client.generate("go", max_tokens=16, seed=i, ignore_end=True, token_ids=True).candidates[0] for i in range(6)]
    together: dict[int, list[int]] = {}

    def run(i):
        deltas = client.stream("go", max_tokens=16, seed=i, ignore_end=True, token_ids=True)
        together[i] = [t for d in deltas for t in d.token_ids]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {i: list(c.token_ids) for i, c in enumerate(alone)}


def test_truncation_only_when_asked_for(client, stub, llm):
    ids = [i % 256 for i in range(llm.context + 40)]
    with pytest.raises(ContextLengthExceeded) as error:
        client.generate(ids)
    assert error.value.field == "token_ids" and "truncat" in str(error.value)
    kept = request()
    kept.token_ids.ids.extend(ids)
    kept.truncate_prompt_to = 100
    answer = stub.Generate(kept)
    assert answer.usage.prompt_tokens == 100
    same = request()
    same.token_ids.ids.extend(ids[-100:])
    assert stub.Generate(same).candidates == answer.candidates


# ---- chat and tokens ----

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|> there"}]


def test_chat_completes_the_rendered_prompt(client, llm):
    prompt, ids = client.render_chat(TALK)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") and prompt.endswith("<|im_start|>assistant\n")
    end = llm.tokenizer.special_spellings["<|im_end|>"]
    assert ids.count(end) == 2, "what a user writes is text, never a special token"
    answer = client.chat(TALK, max_tokens=20, seed=1, token_ids=True)
    raw = client.generate(ids, max_tokens=20, seed=1, token_ids=True)
    assert answer.candidates[0].message.text == raw.candidates[0].text
    assert answer.candidates[0].message.role == chat_pb2.ROLE_ASSISTANT
    assert answer.candidates[0].token_ids == raw.candidates[0].token_ids and answer.usage == raw.usage
    assert "".join(d.text for d in client.stream_chat(TALK, max_tokens=20, seed=1)) == raw.candidates[0].text


def test_template_arguments_and_continuing(client):
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
    arguments = Struct()
    arguments.update({"note": "NOTED"})
    hello = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text="hello")
    noted = stub.RenderChat(tokenizer_pb2.RenderChatRequest(messages=[hello], template_arguments=arguments))
    assert noted.prompt.endswith("NOTED")
    going = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, text="Once upon")
    rendered = stub.RenderChat(tokenizer_pb2.RenderChatRequest(messages=[hello, going], continue_final_message=True))
    assert rendered.prompt.endswith("assistant\nOnce upon")
    arguments.update({"messages": "mine"})
    with pytest.raises(grpc.RpcError) as error:
        stub.RenderChat(tokenizer_pb2.RenderChatRequest(messages=[hello], template_arguments=arguments))
    assert status.from_rpc_error(error.value)[:2] == ("FIELD_INVALID", "template_arguments")


def test_a_model_without_a_template_refuses_chat(tmp_path):
    path = write_tiny(tmp_path / "raw.gguf", extra={"tokenizer.chat_template": None})
    with LLM(path) as llm, serving({"raw": llm}) as server, Client(server.address) as client:
        assert not client.models()[0].capabilities.chat
        with pytest.raises(PyruntimeError, match="template") as error:
            client.chat(TALK)
        assert REASONS[error.value.reason].grpc == "INVALID_ARGUMENT"


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=40))
def test_tokenize_and_detokenize(client, text):
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
    data = text.encode("utf-8", "replace").decode()
    answer = stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=[data, "x"], pieces=True, offsets=True))
    result = answer.results[0]
    assert b"".join(result.pieces) == data.encode() and len(answer.results) == 2
    for piece, start, end in zip(result.pieces, result.start_bytes, result.end_bytes, strict=True):
        assert data.encode()[start:end] == piece
    assert client.detokenize(result.token_ids) == data


def test_detokenize_skips_special_tokens_when_told(client, llm):
    special = llm.tokenizer.special_spellings["<|im_start|>"]
    ids = [*client.tokenize("hi"), special]
    assert client.detokenize(ids) == "hi<|im_start|>"
    assert client.detokenize(ids, skip_special=True) == "hi"


# ---- models, server, health, reflection ----


def test_models_and_server_facts(client, llm):
    (model,) = client.models()
    assert model.name == "tiny" and model.state == model_pb2.MODEL_STATE_READY and model.architecture == "llama"
    assert model.max_context_tokens == llm.context and model.vocabulary_size == llm.tokenizer.vocab_size
    assert model.quantization.scheme in ("q8_0", "q4_0", "q4_1", "f16") and model.quantization.kv_cache_type == "f16"
    assert model.capabilities.chat
    stub = model_pb2_grpc.ModelServiceStub(client.channel)
    assert all(stub.GetModel(model_pb2.GetModelRequest(name=name)).model == model for name in ("", "tiny"))
    info = client.info()
    assert info.version and info.kv_block_tokens == 16 and info.kv_cache_bytes > 0 and info.max_running_requests == 8
    assert info.cpu.isa_selected in info.cpu.isa_detected and info.compute_threads == llm.engine.backend.threads
    assert info.cpu.model and info.start_time.seconds > 1.6e9


def test_health_of_every_name(client):
    stub = health_pb2_grpc.HealthStub(client.channel)
    serving_ = health_pb2.HealthCheckResponse.SERVING
    services = ("Generation", "Chat", "Tokenizer", "Model", "Server")
    for name in ("", "model/tiny", *(f"pyruntime.v1.{s}Service" for s in services)):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == serving_
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(health_pb2.HealthCheckRequest(service="model/other"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection(client, version):
    call = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString, reflection_pb2.ServerReflectionResponse.FromString)
    ask = reflection_pb2.ServerReflectionRequest
    listed, found = call(iter([ask(list_services=""), ask(file_containing_symbol="pyruntime.v1.GenerationService")]))
    names = {s.name for s in listed.list_services_response.service}
    assert {"pyruntime.v1.GenerationService", "pyruntime.v1.ChatService", "grpc.health.v1.Health"} <= names
    assert any(b"StreamGenerate" in f for f in found.file_descriptor_response.file_descriptor_proto)


# ---- bad input ----

BAD = [
    (dict(text="x", sampling=Sampling(temperature=-1)), "FIELD_INVALID", "sampling.temperature"),
    (dict(text="x", sampling=Sampling(temperature=math.nan)), "FIELD_INVALID", "sampling.temperature"),
    (dict(text="x", sampling=Sampling(top_p=0)), "FIELD_INVALID", "sampling.top_p"),
    (dict(text="x", sampling=Sampling(min_p=2)), "FIELD_INVALID", "sampling.min_p"),
    (dict(text="x", sampling=Sampling(repetition_penalty=0)), "FIELD_INVALID", "sampling.repetition_penalty"),
    (dict(text="x", sampling=Sampling(presence_penalty=math.inf)), "FIELD_INVALID", "sampling.presence_penalty"),
    (dict(text="x", sampling=Sampling(logit_bias={9999: 1.0})), "FIELD_INVALID", "sampling.logit_bias"),
    (dict(text="x", sampling=Sampling(logit_bias={i: 1.0 for i in range(1025)})), "FIELD_INVALID", "sampling.logit_bias"),
    (dict(text="x", sampling=Sampling(allowed_token_ids=[4000])), "FIELD_INVALID", "sampling.allowed_token_ids"),
    (dict(text="x", stopping=Stopping(max_output_tokens=0)), "FIELD_INVALID", "stopping.max_output_tokens"),
    (dict(text="x", stopping=Stopping(max_output_tokens=2, min_output_tokens=3)), "FIELD_INVALID", "stopping.min_output_tokens"),
    (dict(text="x", stopping=Stopping(stop_sequences=["a"] * 17)), "FIELD_INVALID", "stopping.stop_sequences"),
    (dict(text="x", stopping=Stopping(stop_sequences=[""])), "FIELD_INVALID", "stopping.stop_sequences"),
    (dict(text="x", stopping=Stopping(stop_token_ids=[999])), "FIELD_INVALID", "stopping.stop_token_ids"),
    (dict(text="x", stopping=Stopping(time_budget=Duration(seconds=-1))), "FIELD_INVALID", "stopping.time_budget"),
    (dict(text="x", output=Output(logprobs=True, top_logprobs=21)), "FIELD_INVALID", "output.top_logprobs"),
    (dict(text="x", output=Output(top_logprobs=2)), "FIELD_INVALID", "output.top_logprobs"),
    (dict(text="x", candidate_count=17), "FIELD_INVALID", "candidate_count"),
    (dict(text="x", request_id="r" * 257), "FIELD_INVALID", "request_id"),
    (dict(text="x", truncate_prompt_to=0), "FIELD_INVALID", "truncate_prompt_to"),
    (dict(text="x", scheduling=generation_pb2.Scheduling(max_queue_wait=Duration(seconds=-1))), "FIELD_INVALID",
     "scheduling.max_queue_wait"),
    (dict(), "FIELD_INVALID", "prompt"),
    (dict(text=""), "FIELD_INVALID", "text"),
    (dict(token_ids=common_pb2.TokenIds()), "FIELD_INVALID", "token_ids"),
    (dict(token_ids=common_pb2.TokenIds(ids=[1, 9999])), "FIELD_INVALID", "token_ids"),
    (dict(token_ids=common_pb2.TokenIds(ids=[1, 2**32 - 1])), "FIELD_INVALID", "token_ids"),
    (dict(token_ids=common_pb2.TokenIds(ids=[1] * 9999)), "CONTEXT_LENGTH_EXCEEDED", "token_ids"),
    (dict(text="x" * 9999), "CONTEXT_LENGTH_EXCEEDED", "text"),
    (dict(text="x", model="other"), "MODEL_NOT_FOUND", "model"),
]


def details_of(error):
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    rich = status_pb2.Status.FromString(packed)
    out = {}
    for detail in rich.details:
        for kind in (details.ErrorInfo, details.BadRequest, details.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                out[kind] = kind()
                detail.Unpack(out[kind])
    return rich, out


@pytest.mark.parametrize(("fields", "reason", "field"), BAD, ids=[f"{f}-{i}" for i, (_, _, f) in enumerate(BAD)])
def test_bad_input_names_the_field(stub, fields, reason, field):
    for prefix, call in (("", stub.Generate), ("request.", lambda r: list(stub.StreamGenerate(StreamRequest(request=r))))):
        with pytest.raises(grpc.RpcError) as caught:
            call(Request(**fields))
        error = caught.value
        rich, found = details_of(error)
        assert error.code().name == REASONS[reason].grpc and rich.code == error.code().value[0]
        assert rich.message == error.details() and "\n" not in rich.message
        assert (found[details.ErrorInfo].reason, found[details.ErrorInfo].domain) == (reason, "pyruntime")
        assert [v.field for v in found[details.BadRequest].field_violations] == [prefix + field]
        assert field.rsplit(".")[-1] in rich.message or field in ("text", "token_ids", "prompt"), rich.message


def test_bad_stream_options_and_messages(client, stub):
    with pytest.raises(grpc.RpcError) as error:
        options = generation_pb2.StreamOptions(max_delay=Duration(seconds=-1))
        list(stub.StreamGenerate(StreamRequest(request=request(), stream=options)))
    assert status.from_rpc_error(error.value)[:2] == ("FIELD_INVALID", "stream.max_delay")
    chat = chat_pb2_grpc.ChatServiceStub(client.channel)
    for messages, field in (([], "messages"), ([chat_pb2.ChatMessage(text="x")], "messages[0].role"),
                            ([chat_pb2.ChatMessage(role=9, text="x")], "messages[0].role")):
        with pytest.raises(grpc.RpcError) as error:
            chat.Chat(chat_pb2.ChatRequest(messages=messages))
        assert status.from_rpc_error(error.value)[:2] == ("FIELD_INVALID", field)
    with pytest.raises(FieldInvalid) as typed:
        client.detokenize([1, 4096])
    assert typed.value.field == "sequences[0].ids"
    with pytest.raises(FieldInvalid):
        tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        client._call(tokenizer.Tokenize, tokenizer_pb2.TokenizeRequest())
    with pytest.raises(ModelNotFound, match="tiny"):
        Client(client_address(client), model="nope").tokenize("x")


def client_address(client):
    return client.channel._channel.target().decode().removeprefix("dns:///")


def test_a_long_bad_value_fits_the_trailers(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Generate(Request(text="x", model="日" * 5000))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    assert status.from_rpc_error(error.value)[:2] == ("MODEL_NOT_FOUND", "model")


def test_a_message_over_16_mib_is_refused(stub):
    with pytest.raises(grpc.RpcError) as error:
        stub.Generate(Request(text="x" * (16 << 20)))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_get_an_answer_or_a_status(server, data):
    with grpc.insecure_channel(server.address) as channel:
        for method in ("Generation/Generate", "Chat/Chat", "Tokenizer/Tokenize", "Tokenizer/Detokenize"):
            call = channel.unary_unary("/pyruntime.v1." + method.replace("/", "Service/"), lambda b: b, lambda b: b)
            try:
                call(data, timeout=20)
            except grpc.RpcError as error:
                assert error.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), error


def test_every_reason_has_a_code_and_a_detail():
    for reason in REASONS:
        rich = status.rich_status(PyruntimeError("what, where, what to do", reason=reason, field="f"))
        assert rich.code == status.grpc_code(reason).value[0] and len(rich.details) >= 2
        retry = any(d.Is(details.RetryInfo.DESCRIPTOR) for d in rich.details)
        assert retry == (REASONS[reason].grpc in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"))
