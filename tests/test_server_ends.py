"""How calls and servers end: cancelled, lost, late, stalled, refused, drained. Steps are slow here, so that there is time."""
from __future__ import annotations

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hash_backend import HashBackend, expected
from server_fixture import serving
from tiny_model import tiny_tokenizer

from pyruntime.client import Client, ServerError
from pyruntime.engine.engine import Engine
from pyruntime.errors import EngineFailed, FieldInvalid, ModelInvalid, PyruntimeError, QueueFull
from pyruntime.server import Server, auth, status
from pyruntime.server.pb import common_pb2, generation_pb2, generation_pb2_grpc, model_pb2
from pyruntime.types import FinishReason

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = tiny_tokenizer()
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def slow_engine(step=0.005, **options):
    """An engine whose steps take a while; `engine.backend.before` can be exchanged."""
    return Engine(HashBackend(before=lambda _: time.sleep(step), pages=128, max_rows=64), TOKENIZER, max_running=8, **options)


@contextmanager
def paced(engine, step):
    """Steps that take `step` seconds."""
    before, engine.backend.before = engine.backend.before, lambda _: time.sleep(step)
    try:
        yield
    finally:
        engine.backend.before = before


@pytest.fixture(scope="module")
def engine():
    engine = slow_engine()
    yield engine
    engine.close()
    engine.scheduler.check()


@pytest.fixture(scope="module")
def server(engine):
    with serving({"slow": engine}) as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.address, timeout=60) as client:
        yield client


def stub_of(client):
    return generation_pb2_grpc.GenerationServiceStub(client.channel)


def idle(engine, seconds=10.0):
    """Whether, soon, nothing is left in the engine and every page is free."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stats = engine.stats()
        if not stats.running + stats.waiting and not stats.pages_used:
            return True
        time.sleep(0.005)
    return False


def request(tokens=200, n=1):
    return generation_pb2.GenerateRequest(
        text="hello", candidate_count=n, sampling=generation_pb2.Sampling(seed=7),
        stopping=generation_pb2.Stopping(max_output_tokens=tokens, ignore_end_tokens=True))


def stream_request(tokens=200, n=1):
    return generation_pb2.StreamGenerateRequest(request=request(tokens, n))


def until(true, seconds=20.0):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


# ---- clients that go ----


@pytest.mark.parametrize("n", [1, 3])
def test_cancelling_frees_the_pages_within_a_step(client, engine, n):
    before = engine.stats().generated_tokens
    call = stub_of(client).StreamGenerate(stream_request(n=n))
    assert next(call).HasField("started")
    next(call)
    assert engine.stats().pages_used
    call.cancel()
    assert idle(engine) and engine.stats().generated_tokens - before < 200 * n
    future = stub_of(client).Generate.future(request(n=n))
    until(lambda: engine.stats().running)
    future.cancel()
    assert idle(engine)


def test_leaving_the_clients_iterator_cancels(client, engine):
    for _ in client.stream("hello", max_tokens=200, ignore_end=True):
        break
    assert idle(engine)


def test_a_lost_connection_frees_the_pages(server, engine):
    channel = grpc.insecure_channel(server.address)
    call = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(stream_request())
    next(call)
    channel.close()
    assert idle(engine)


def test_cancelling_before_the_answer_began(client, engine):
    """The prompt is still on its way into the engine, or waiting for a place."""
    for _ in range(10):
        calls = [stub_of(client).Generate.future(request()) for _ in range(12)]
        for call in calls:
            call.cancel()
    assert idle(engine)


def test_a_deadline_frees_the_pages(client, engine):
    for call in (lambda: stub_of(client).Generate(request(), timeout=0.2),
                 lambda: list(stub_of(client).StreamGenerate(stream_request(), timeout=0.2))):
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert idle(engine)
    with Client(client_address(client), timeout=0.2) as hasty, pytest.raises(ServerError) as late:
        hasty.generate("hello", max_tokens=200, ignore_end=True)
    assert late.value.code == "DEADLINE_EXCEEDED"


def client_address(client):
    return client.channel._channel.target().decode().removeprefix("dns:///")


def test_a_time_budget_ends_with_partial_text_and_ok(client):
    answer = client.generate("hello", time_budget=0.5, ignore_end=True)
    assert answer.candidates[0].finish.reason == common_pb2.FINISH_REASON_TIME_BUDGET
    assert 0 < answer.usage.output_tokens < 200
    events = list(client.stream_generate("hello", time_budget=0.5, ignore_end=True))
    assert events[-2].candidate_done.finish.reason == common_pb2.FINISH_REASON_TIME_BUDGET
    assert "".join(e.delta.text for e in events) and events[-1].HasField("done")


def test_what_ends_while_it_waits_for_a_place_has_a_start_too(client, engine):
    for call in (client.generate("x", time_budget=0.0), client.generate("x", time_budget=0.0, n=2)):
        assert {c.finish.reason for c in call.candidates} == {common_pb2.FINISH_REASON_TIME_BUDGET}
    with paced(engine, 0.03):
        others = [client.stream("hello", max_tokens=240, ignore_end=True) for _ in range(8)]
        for other in others:
            next(other)
        kinds = [e.WhichOneof("event") for e in client.stream_generate("x", time_budget=0.05, n=2)]
        assert kinds == ["started", "candidate_done", "candidate_done", "done"]
        for other in others:
            other.close()
    assert idle(engine)


def test_the_first_delta_does_not_wait_for_the_rest(client, engine):
    """The engine makes a few tokens and no more until the first delta has arrived."""
    arrived, first = threading.Event(), engine.backend.steps
    before, engine.backend.before = engine.backend.before, lambda step: step > first + 5 and arrived.wait(30) and None
    try:
        stream = client.stream("hello", max_tokens=200, ignore_end=True)
        assert next(stream).output_tokens
        arrived.set()
        assert sum(delta.output_tokens for delta in stream) > 150
    finally:
        arrived.set()
        engine.backend.before = before


# ---- readers that do not read ----


def test_a_stopped_reader_is_ended_and_others_are_not():
    """Its pages are free, its memory is bounded, and its status says why once it reads again."""
    engine = Engine(HashBackend(pages=600, context=8192, max_rows=64), TOKENIZER, max_running=8)
    heavy = generation_pb2.StreamGenerateRequest(request=request(8000))
    heavy.request.output.logprobs = True
    heavy.request.output.top_logprobs = 20
    try:
        with serving({"fast": engine}, reader_stall_timeout=0.5) as server:
            options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
            with grpc.insecure_channel(server.address, options) as channel, Client(server.address) as other:
                call = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(heavy)
                next(call)
                assert idle(engine, 60)
                assert other.generate("hello", max_tokens=5).candidates[0].finish.reason
                until(lambda: not len(server._calls))
                events = []
                with pytest.raises(grpc.RpcError) as error:
                    events.extend(call)
                assert error.value.code() == grpc.StatusCode.ABORTED
                assert status.from_rpc_error(error.value)[0] == "READER_STALLED"
    finally:
        engine.close()


def test_a_late_reader_gets_everything_in_fewer_messages():
    """Nothing is read until the engine is done: deltas merged in the server, none lost."""
    engine = Engine(HashBackend(pages=600, context=8192, max_rows=64), TOKENIZER, max_running=8)
    wide = stream_request(1200)
    wide.request.output.token_ids = wide.request.output.logprobs = True
    wide.request.output.top_logprobs = 20
    try:
        with serving({"fast": engine}) as server, Client(server.address) as client:
            whole = client.generate("hello", max_tokens=1200, seed=7, ignore_end=True, token_ids=True, logprobs=20).candidates[0]
            narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
            with grpc.insecure_channel(server.address, narrow) as channel:
                call = generation_pb2_grpc.GenerationServiceStub(channel).StreamGenerate(wide)
                events = [next(call)]
                assert idle(engine, 60)
                events += call
    finally:
        engine.close()
    deltas = [e.delta for e in events if e.HasField("delta")]
    assert "".join(d.text for d in deltas) == whole.text
    assert [t for d in deltas for t in d.token_ids] == list(whole.token_ids)
    assert [p for d in deltas for p in d.logprobs] == list(whole.logprobs)
    assert len(deltas) < 1200 and max(d.ByteSize() for d in deltas) < 1 << 20


def test_any_mix_of_answers_and_departures_leaves_the_engine_empty(server, engine):
    """Six clients that finish, leave early, run out of time or send nonsense, at random; the engine stays whole."""
    def act(stub, chance):
        what, n = chance.randrange(6), chance.choice((1, 1, 2, 4))
        try:
            if what == 0:
                assert stub.Generate(request(6, n)).usage.output_tokens == 6 * n
            elif what == 1:
                call = stub.StreamGenerate(stream_request(100, n))
                for _ in range(chance.randrange(1, 6)):
                    next(call)
                call.cancel()
            elif what == 2:
                stub.Generate(request(150, n), timeout=chance.choice((0.001, 0.01, 0.1)))
            elif what == 3:
                assert list(stub.StreamGenerate(stream_request(5, n)))[-1].HasField("done")
            elif what == 4:
                stub.Generate.future(request(150, n)).cancel()
            else:
                stub.Generate(request(0, n))
        except grpc.RpcError as error:
            wanted = {2: grpc.StatusCode.DEADLINE_EXCEEDED, 5: grpc.StatusCode.INVALID_ARGUMENT}
            assert error.code() == wanted.get(what), error

    def live(seed):
        try:
            with Client(server.address) as client:
                for i in range(10):
                    act(stub_of(client), random.Random(10 * seed + i))
        except BaseException as error:
            failures.append(error)

    failures: list[BaseException] = []
    threads = [threading.Thread(target=live, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and idle(engine)
    engine.scheduler.check()
    with Client(server.address) as client:
        until(lambda: not len(server._calls))
        prompt = [5, 6, 7]
        answer = client.generate(prompt, max_tokens=20, seed=3, ignore_end=True, token_ids=True).candidates[0]
        assert list(answer.token_ids) == expected(prompt, 20, seed=3)


# ---- the engine's own errors ----


def test_an_engines_failure_is_internal_and_the_server_lives():
    engine = Engine(HashBackend(), TOKENIZER)
    engine.backend.poison = {65}
    try:
        with serving({"m": engine}) as server, Client(server.address) as client:
            for _ in range(2):
                with pytest.raises(EngineFailed, match="not finite"):
                    client.generate([65, 66], max_tokens=4)
                with pytest.raises(EngineFailed):
                    list(client.stream([65, 66], max_tokens=4))
                assert client.generate([66], max_tokens=4).usage.output_tokens == 4
    finally:
        engine.close()


def test_tokens_that_only_pad_the_embedding_have_no_bytes(client):
    """The model here has one more token than the tokenizer."""
    padding = TOKENIZER.vocab_size
    answer = client.generate([5], max_tokens=3, allowed_token_ids=[padding], logprobs=1, token_ids=True, prompt_logprobs=True)
    assert list(answer.candidates[0].token_ids) == [padding] * 3 and answer.candidates[0].text == ""
    assert [p.token_bytes for p in answer.candidates[0].logprobs] == [b""] * 3
    with pytest.raises(FieldInvalid):
        client.detokenize([padding])


def test_a_full_queue_and_a_long_wait_are_resource_exhausted():
    engine = Engine(HashBackend(before=lambda _: time.sleep(0.005)), TOKENIZER, max_running=1, max_waiting=1)
    try:
        with serving({"m": engine}) as server, Client(server.address) as client:
            first, second = client.stream("a", max_tokens=200, ignore_end=True), None
            next(first)
            second = stub_of(client).Generate.future(request())
            until(lambda: engine.stats().waiting)
            with pytest.raises(QueueFull):
                client.generate("c")
            with pytest.raises(grpc.RpcError) as error:
                stub_of(client).Generate(request())
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "RetryInfo" in str(dict(error.value.trailing_metadata())["grpc-status-details-bin"])
            second.cancel()
            until(lambda: not engine.stats().waiting)
            late = request()
            late.scheduling.max_queue_wait.CopyFrom(Duration(nanos=20_000_000))
            with pytest.raises(grpc.RpcError) as error:
                stub_of(client).Generate(late)
            assert status.from_rpc_error(error.value)[0] == "QUEUE_WAIT_EXCEEDED"
            first.close()
            assert idle(engine)
    finally:
        engine.close()


def test_an_engine_that_is_closed_under_a_call_is_unavailable():
    engine = slow_engine()
    with serving({"m": engine}) as server, Client(server.address) as client:
        stream = client.stream("hello", max_tokens=200, ignore_end=True)
        next(stream)
        threading.Thread(target=engine.close).start()
        with pytest.raises(ServerError) as error:
            list(stream)
        assert (error.value.code, error.value.reason) == ("UNAVAILABLE", "DRAINING")
        until(lambda: not engine.healthy)
        with pytest.raises(EngineFailed, match="closed"):
            client.generate("x")
        health = health_pb2_grpc.HealthStub(client.channel)
        until(lambda: health.Check(health_pb2.HealthCheckRequest(service="model/m")).status == NOT_SERVING)


# ---- draining ----


def test_draining_refuses_new_finishes_running_and_cuts_the_rest():
    engine = slow_engine()
    engine.backend.before = lambda step: time.sleep(0.005 if step < 60 else 0.5)
    try:
        with serving({"m": engine}) as server, Client(server.address) as client:
            health = health_pb2_grpc.HealthStub(client.channel)
            watch = health.Watch(health_pb2.HealthCheckRequest(service="model/m"))
            assert next(watch).status == SERVING
            short, long = {}, {}

            def read(into, tokens):
                into["events"] = list(client.stream_generate("hello", max_tokens=tokens, ignore_end=True))

            threads = [threading.Thread(target=read, args=(short, 20)), threading.Thread(target=read, args=(long, 250))]
            for thread in threads:
                thread.start()
            until(lambda: engine.stats().running == 2)
            stopping = asyncio.run_coroutine_threadsafe(server.stop(timeout=3), server.loop)
            assert next(watch).status == NOT_SERVING
            with pytest.raises(ServerError) as refused:
                until(lambda: client.generate("x", max_tokens=1) is None)
            assert (refused.value.reason, refused.value.code) == ("DRAINING", "UNAVAILABLE")
            for thread in threads:
                thread.join(30)
            stopping.result(30)
            ends = [x["events"][-2].candidate_done.finish.reason for x in (short, long)]
            assert ends == [common_pb2.FINISH_REASON_MAX_OUTPUT_TOKENS, common_pb2.FINISH_REASON_DRAINED]
            assert long["events"][-1].HasField("done") and "".join(e.delta.text for e in long["events"])
            assert idle(engine)
    finally:
        engine.close()


SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from hash_backend import HashBackend, expected
from tiny_model import tiny_tokenizer
from pyruntime.engine.engine import Engine
from pyruntime.server import run_server
engine = Engine(HashBackend(before=lambda _: time.sleep(0.01)), tiny_tokenizer())
run_server({{"m": engine}}, address="127.0.0.1:0", ready=lambda a: print(a, flush=True), drain_timeout={timeout})
print("stopped", flush=True)
engine.close()
"""


def spawn(timeout):
    code = SCRIPT.format(tests=str(ROOT / "tests"), root=str(ROOT), timeout=timeout)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_drains_and_a_second_one_is_now(signals):
    process, address = spawn(60 if signals == 2 else 0.3)
    try:
        with Client(address) as client:
            stream = client.stream_generate("hello", max_tokens=250, ignore_end=True)
            next(stream)
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.1)
            last = list(stream)
            assert last[-2].candidate_done.finish.reason == common_pb2.FINISH_REASON_DRAINED
        assert process.wait(20) == 0 and process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


# ---- loading and health ----


def test_a_model_being_loaded_then_ready_or_failed():
    go, engine = threading.Event(), slow_engine()

    class Loaded:
        def __init__(self, engine):
            self.engine = engine

        def close(self):
            self.engine.close()

    def load():
        go.wait(30)
        return Loaded(engine)

    def broken():
        raise ModelInvalid("broken.gguf: magic at byte 0 is not GGUF; get the file again")

    with serving({"good": load, "bad": broken}) as server, Client(server.address) as client:
        health = health_pb2_grpc.HealthStub(client.channel)

        def check(name):
            return health.Check(health_pb2.HealthCheckRequest(service=name)).status

        watch = health.Watch(health_pb2.HealthCheckRequest(service="pyruntime.v1.GenerationService"))
        assert next(watch).status == NOT_SERVING and check("") == SERVING and check("model/good") == NOT_SERVING
        assert [m.state for m in client.models()] == [model_pb2.MODEL_STATE_LOADING] * 2
        with pytest.raises(grpc.RpcError) as error:
            stub_of(client).Generate(request())
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE and status.from_rpc_error(error.value)[0] == "MODEL_LOADING"
        go.set()
        assert next(watch).status == SERVING
        server.run(server.loaded())
        assert check("model/good") == SERVING and check("model/bad") == NOT_SERVING
        states = {m.name: (m.state, m.state_detail) for m in client.models()}
        assert states["good"][0] == model_pb2.MODEL_STATE_READY
        assert states["bad"][0] == model_pb2.MODEL_STATE_FAILED and "not GGUF" in states["bad"][1]
        assert client.generate("x", max_tokens=2).model == "good"
        with pytest.raises(PyruntimeError, match="not GGUF"):
            Client(server.address, model="bad").generate("x")
    assert engine.backend.closed, "the server closes what it loaded"


def test_health_notices_steps_that_stop():
    hold = threading.Event()
    engine = Engine(HashBackend(), TOKENIZER)
    engine.backend.before = lambda step: hold.wait(30) and None
    try:
        with serving({"m": engine}, step_timeout=0.2, reader_stall_timeout=0.4) as server, Client(server.address) as client:
            watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest(service="model/m"))
            assert next(watch).status == SERVING
            future = stub_of(client).Generate.future(request(4))
            assert next(watch).status == NOT_SERVING
            hold.set()
            assert future.result(20).usage.output_tokens == 4
            assert next(watch).status == SERVING
    finally:
        hold.set()
        engine.close()


# ---- who may come in ----


def test_a_key_is_asked_for_everywhere_but_health(engine):
    with serving({"m": engine}, api_keys=["right", "other"]) as server:
        for key in ("", "wrong", "right ", "righ"):
            with Client(server.address, api_key=key) as client:
                health = health_pb2_grpc.HealthStub(client.channel)
                assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
                if key == "right ":
                    continue
                for call in (client.models, client.info, lambda c=client: c.generate("x"), lambda c=client: list(c.stream("x"))):
                    with pytest.raises(ServerError) as error:
                        call()
                    assert (error.value.code, error.value.reason) == ("UNAUTHENTICATED", "AUTH_MISSING")
                unknown = client.channel.unary_unary("/pyruntime.v1.Nothing/AtAll")
                with pytest.raises(grpc.RpcError) as refused:
                    unknown(b"")
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        for key in ("right", "other"):
            with Client(server.address, api_key=key) as client:
                assert client.generate("x", max_tokens=2, ignore_end=True).usage.output_tokens == 2
                assert len(list(client.stream_generate("x", max_tokens=2, ignore_end=True))) >= 4


def test_keys_come_from_the_environment_and_a_file(engine, tmp_path, monkeypatch):
    monkeypatch.delenv("PYRUNTIME_API_KEY", raising=False)
    assert auth.read_keys(None) == []
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert auth.read_keys(tmp_path / "keys") == ["one", "two"]
    monkeypatch.setenv("PYRUNTIME_API_KEY", "three")
    assert auth.read_keys(tmp_path / "keys") == ["three", "one", "two"]
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(FieldInvalid, match="no key"):
        auth.read_keys(tmp_path / "empty")
    with pytest.raises(FieldInvalid, match="empty key"):
        Server({"m": engine}, api_keys=[""])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls(engine, tmp_path):
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", tmp_path / "key", "-out", tmp_path / "chain"], capture_output=True)
    assert made.returncode == 0, made.stderr
    chain, key = (tmp_path / "chain").read_bytes(), (tmp_path / "key").read_bytes()
    with serving({"m": engine}, address="localhost:0", tls=(chain, key)) as server:
        with Client(server.address, root_certificates=chain) as client:
            assert client.generate("x", max_tokens=2, ignore_end=True).usage.output_tokens == 2
        with Client(server.address, timeout=5) as plain, pytest.raises(ServerError) as error:
            plain.info()
        assert error.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    with pytest.raises(FieldInvalid, match="PEM"), serving({"m": engine}, tls=(b"no", b"key")):
        pass


def test_an_open_address_needs_a_guard(engine):
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:50051", "example.org:1"):
        with pytest.raises(FieldInvalid, match="insecure") as error:
            Server({"m": engine}, address=address)
        assert error.value.field == "address"
        Server({"m": engine}, address=address, api_keys=["key"])
        Server({"m": engine}, address=address, insecure=True)
    for address in ("127.0.0.1:0", "localhost:0", "[::1]:0", "unix:/run/x", "127.1.2.3:9"):
        assert auth.is_loopback(address)


def test_a_taken_port_is_a_typed_error(engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FieldInvalid, match="cannot be listened on"), \
                serving({"m": engine}, address=f"127.0.0.1:{taken.getsockname()[1]}"):
            pass


def test_a_unix_socket(engine, tmp_path):
    with serving({"m": engine}, address=f"unix:{tmp_path}/s") as server, Client(server.address) as client:
        assert client.generate("x", max_tokens=2, ignore_end=True).usage.output_tokens == 2


def test_metadata_over_16_kib_is_refused(client):
    with pytest.raises(grpc.RpcError) as error:
        stub_of(client).Generate(request(2), metadata=(("big", "x" * (17 << 10)),))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_no_finish_reason_is_forgotten():
    from pyruntime.server.convert import FINISH

    assert set(FinishReason) - set(FINISH) == {FinishReason.CANCELLED, FinishReason.FAILED}
    assert details.ErrorInfo
