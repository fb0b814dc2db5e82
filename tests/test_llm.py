"""LLM and AsyncLLM on a tiny random model, whole stack: file, tokenizer, engine, backend."""
from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_tiny

from pyruntime import (
    LLM,
    AsyncLLM,
    Completion,
    ContextLengthExceeded,
    EngineFailed,
    FieldInvalid,
    FinishReason,
    ModelInvalid,
    ModelNotFound,
    SamplingParams,
)
from pyruntime.loading import available_memory, open_model

GREEDY = {"temperature": 0.0, "ignore_end": True}
MESSAGES = [{"role": "user", "content": "hello"}]


def load(path: Path, backend: str, *, chunk: int = 32, **options) -> LLM:
    """An LLM of four seats. The reference sums in f64 here, so that its answers do not depend on the batch either."""
    model = open_model(path, backend=backend, max_running=4, chunk=chunk, progress=False, **options)
    if backend == "torch":
        import torch

        from pyruntime.backends.torch import TorchBackend

        torch.set_num_threads(1)    # tiny products: more only wait for each other
        old = model.backend
        model.backend = TorchBackend(model.plan, model.weights, pages=old.pages, max_tokens=old.max_tokens,
                                     max_rows=old.max_rows, histories=old.histories, dtype=torch.float64)
    return LLM(model)


@pytest.fixture(scope="module", params=["native", "torch"])
def llm(request: pytest.FixtureRequest, tiny_model: Path):
    """A small cache, so that long answers preempt each other. Prompt and generated tokens round alike, on any processor."""
    alike = {"precision": "precise"} if request.param == "native" else {}
    with load(tiny_model, request.param, kv_tokens=512, **alike) as llm:
        yield llm
        assert llm.stats().pages_used == 0


def solo(llm: LLM, prompt: list[int], params: SamplingParams) -> tuple[int, ...]:
    return llm.generate(prompt, params).token_ids


# ---- the same answer whatever happens around it ----


@given(st.data())
@settings(max_examples=8)
def test_a_batch_answers_like_solo_runs(llm: LLM, data: st.DataObject) -> None:
    """Random prompts, lengths and seeds; four at once in a cache for two: batching, chunking and preemption all happen."""
    vocab = llm.engine.vocab
    jobs = data.draw(st.lists(st.tuples(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=80), st.integers(1, 40),
                                        st.sampled_from([0.0, 0.7, 1.3])), min_size=2, max_size=5))
    params = [SamplingParams(max_tokens=n, temperature=t, seed=i, ignore_end=True) for i, (_, n, t) in enumerate(jobs)]
    together = llm.generate([p for p, _, _ in jobs], params)
    assert [c.token_ids for c in together] == [solo(llm, p, q) for (p, _, _), q in zip(jobs, params, strict=True)]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_preemption_and_chunks_are_neutral(tiny_model: Path, backend: str) -> None:
    prompts = [list(range(10 * i + 3, 10 * i + 40)) for i in range(4)]
    answers = []
    for kv_tokens, chunk, beside in ((1024, 256, 256), (256, 256, 16), (256, 7, 3), (1024, 1, 16), (1024, 256, 1)):
        with load(tiny_model, backend, kv_tokens=kv_tokens, chunk=chunk, chunk_beside=beside) as llm:
            assert llm.engine.scheduler.beside == beside
            answers.append([c.token_ids for c in llm.generate(prompts, max_tokens=100, **GREEDY)])
            assert (llm.stats().preemptions > 0) == (kv_tokens == 256)
    assert all(a == answers[0] for a in answers) and len(set(answers[0])) == 4


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    whole = llm.generate(list(range(3, 20)), max_tokens=6, logprobs=3, prompt_logprobs=True, **GREEDY)
    assert whole.logprobs is not None and whole.prompt_logprobs is not None
    assert [t.token_id for t in whole.logprobs] == list(whole.token_ids) and all(t.rank == 1 for t in whole.logprobs)
    assert all(len(t.top) == 3 and t.top[0] == (t.token_id, t.logprob) for t in whole.logprobs)
    again = llm.generate([*range(3, 20), *whole.token_ids], max_tokens=1, prompt_logprobs=True, **GREEDY)
    assert again.prompt_logprobs is not None
    first = again.prompt_logprobs[0]
    assert (first.token_id, first.logprob, first.rank) == (3, None, 0)
    assert [t.token_id for t in again.prompt_logprobs] == [*range(3, 20), *whole.token_ids]
    for a, b in zip(whole.logprobs, again.prompt_logprobs[17:], strict=True):
        assert a.token_id == b.token_id and a.rank == b.rank and a.logprob == pytest.approx(b.logprob, abs=1e-5)
    same = [t.logprob for t in again.prompt_logprobs[1:17]]
    assert [t.logprob for t in whole.prompt_logprobs[1:]] == pytest.approx(same, abs=1e-5)


# ---- generate, chat, stream ----


def test_one_in_one_out_a_list_in_a_list_out(llm: LLM) -> None:
    text = llm.generate("hello world", max_tokens=4, **GREEDY)
    assert isinstance(text, Completion) and text.usage.output_tokens == 4 and text.finish_reason == FinishReason.LENGTH
    ids = llm.generate(llm.tokenize("hello world"), max_tokens=4, **GREEDY)
    array = llm.generate(np.array(llm.tokenize("hello world")), max_tokens=4, **GREEDY)
    listed = llm.generate(["hello world", llm.tokenize("hello world")], SamplingParams(max_tokens=4, **GREEDY))
    assert isinstance(listed, list) and [c.token_ids for c in (ids, array, *listed)] == [text.token_ids] * 4
    assert text.text == llm.detokenize(text.token_ids, skip_special=True)
    each = llm.generate(["hello", "hello"], [SamplingParams(max_tokens=2), SamplingParams(max_tokens=3)], ignore_end=True)
    assert [len(c.token_ids) for c in each] == [2, 3]


def test_more_prompts_than_places(tiny_model: Path) -> None:
    with LLM(tiny_model, backend="torch", max_running=2, max_waiting=1, kv_tokens=512, progress=False) as llm:
        answers = llm.generate([[i + 3] for i in range(9)], max_tokens=2, **GREEDY)
        assert [c.prompt_token_ids for c in answers] == [(i + 3,) for i in range(9)]


def test_chat_goes_through_the_template(llm: LLM) -> None:
    answer = llm.chat(MESSAGES, max_tokens=3, **GREEDY)
    prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert list(answer.prompt_token_ids) == llm.tokenize(prompt, allow_special=True)
    assert llm.chat([MESSAGES, MESSAGES], max_tokens=3, **GREEDY)[1].token_ids == answer.token_ids
    assert "".join(d.text for d in llm.stream(MESSAGES, max_tokens=3, **GREEDY)) == answer.text


def test_a_stream_adds_up_to_the_answer(llm: LLM) -> None:
    answer = llm.generate("hello world", max_tokens=40, logprobs=1, **GREEDY)
    deltas = list(llm.stream("hello world", max_tokens=40, logprobs=1, **GREEDY))
    assert "".join(d.text for d in deltas) == answer.text
    assert tuple(t for d in deltas for t in d.token_ids) == answer.token_ids
    assert tuple(t for d in deltas for t in d.logprobs) == answer.logprobs
    last = deltas[-1].completion
    assert last is not None and last.token_ids == answer.token_ids and all(d.completion is None for d in deltas[:-1])


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_leaving_a_stream_cancels_it(llm: LLM, how: str) -> None:
    stream = llm.stream("hello", max_tokens=200, **GREEDY)
    next(stream)
    if how == "close":
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            pass
    del stream
    gc.collect()
    assert llm.engine._wake.acquire() and (llm.engine._wake.release() or True)
    until = time.monotonic() + 30
    while llm.stats().pages_used and time.monotonic() < until:
        time.sleep(0.005)
    assert llm.stats().pages_used == 0


def test_threads_share_one_llm(llm: LLM) -> None:
    want = llm.generate(["hello", "world"], max_tokens=20, **GREEDY)
    got: dict[int, Completion] = {}

    def ask(i: int) -> None:
        got[i] = llm.generate(["hello", "world"][i % 2], max_tokens=20, **GREEDY)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [got[i].token_ids for i in range(6)] == [want[i % 2].token_ids for i in range(6)]


# ---- asyncio ----


def test_the_async_twin(llm: LLM) -> None:
    async def main() -> None:
        aio = llm.aio
        want = llm.generate(["hello", "world"], max_tokens=20, **GREEDY)
        got = await aio.generate(["hello", "world"], max_tokens=20, **GREEDY)
        assert [c.token_ids for c in got] == [c.token_ids for c in want]
        several = await asyncio.gather(*(aio.generate("hello", max_tokens=20, **GREEDY) for _ in range(5)))
        assert {c.token_ids for c in several} == {want[0].token_ids}
        deltas = [d async for d in aio.stream("world", max_tokens=20, **GREEDY)]
        assert "".join(d.text for d in deltas) == want[1].text and deltas[-1].completion is not None
        assert (await aio.chat(MESSAGES, max_tokens=3, **GREEDY)).text == llm.chat(MESSAGES, max_tokens=3, **GREEDY).text
        assert await aio.detokenize(await aio.tokenize("hello")) == "hello"
        with pytest.raises(FieldInvalid):
            await aio.generate("", max_tokens=2)

    asyncio.run(main())


def test_cancelling_a_task_frees_its_pages(llm: LLM) -> None:
    async def main() -> None:
        aio = llm.aio
        first = asyncio.Event()

        async def read() -> None:
            async for _ in aio.stream("hello", max_tokens=200, **GREEDY):
                first.set()

        tasks = [asyncio.create_task(read()), asyncio.create_task(aio.generate("hello", max_tokens=200, **GREEDY))]
        await first.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while llm.stats().pages_used:
            await asyncio.sleep(0.005)
        assert not aio._sink.queues  # type: ignore[union-attr]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_async_load_and_close(tiny_model: Path) -> None:
    async def main() -> None:
        async with await AsyncLLM.load(tiny_model, backend="torch", kv_tokens=256, progress=False) as aio:
            assert (await aio.generate("hello", max_tokens=2, **GREEDY)).usage.output_tokens == 2
        with pytest.raises(EngineFailed, match="closed"):
            await aio.generate("hello")

    asyncio.run(main())


# ---- bad input ----


def test_a_prompt_longer_than_the_context(llm: LLM) -> None:
    prompt = [i % 200 + 3 for i in range(300)]
    with pytest.raises(ContextLengthExceeded, match="300 tokens.*hold 256"):
        llm.generate(prompt)
    cut = llm.generate(prompt, max_tokens=10, truncate=True, **GREEDY)
    assert list(cut.prompt_token_ids) == prompt[-246:] and len(cut.token_ids) == 10
    assert llm.generate(prompt, truncate=True, **GREEDY).finish_reason == FinishReason.CONTEXT


@pytest.mark.parametrize(("ask", "field"), [
    (lambda llm: llm.generate(""), "prompt"),
    (lambda llm: llm.generate([]), "prompts"),
    (lambda llm: llm.generate(["ok", ""]), "prompt"),
    (lambda llm: llm.generate([["a"]]), "prompt"),
    (lambda llm: llm.generate(7), "prompts"),
    (lambda llm: llm.generate([1 << 40]), "prompt"),
    (lambda llm: llm.generate("a", temperature=-1), "temperature"),
    (lambda llm: llm.generate("a", temperature=float("nan")), "temperature"),
    (lambda llm: llm.generate("a", top_p=0.0), "top_p"),
    (lambda llm: llm.generate("a", top_q=1), "top_q"),
    (lambda llm: llm.generate(["a", "b"], [SamplingParams()]), "params"),
    (lambda llm: llm.chat([]), "messages"),
    (lambda llm: llm.chat("hello"), "messages"),
    (lambda llm: llm.stream(""), "prompt"),
])
def test_bad_input_names_the_field(llm: LLM, ask, field: str) -> None:
    with pytest.raises(FieldInvalid) as e:
        ask(llm)
    assert e.value.field == field and "\n" not in str(e.value)


def test_after_a_fork_the_child_is_told_and_the_parent_goes_on(llm: LLM) -> None:
    want = llm.generate("hello", max_tokens=5, **GREEDY).token_ids
    read, write = os.pipe()
    stream = llm.stream("hello", max_tokens=100, **GREEDY)
    next(stream)
    if (pid := os.fork()) == 0:
        message = "no error"
        try:
            llm.generate("hello", max_tokens=5)
        except EngineFailed as error:
            message = str(error)
        except BaseException as error:
            message = repr(error)
        stream.close()
        llm.close()
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert "load the model in the child" in message
    assert len([d for d in stream if d.token_ids]) == 99
    assert llm.generate("hello", max_tokens=5, **GREEDY).token_ids == want


# ---- loading ----


@pytest.mark.parametrize(("options", "field"), [
    ({"backend": "gpu"}, "backend"), ({"context": 0}, "context"), ({"kv_tokens": 1 << 50}, "kv_tokens"),
    ({"max_running": True}, "max_running"), ({"chunk_beside": 0}, "chunk_beside"), ({"backend": "torch", "isa": "avx2"}, "isa"),
    ({"kv_format": "q3"}, "kv_format"), ({"kv_format": "f16:"}, "kv_format"), ({"kv_format": "f16:f16:f16"}, "kv_format"),
    ({"kv_format": "f16:q8_0"}, "kv_format"),
])
def test_bad_options(tiny_model: Path, options: dict, field: str) -> None:
    with pytest.raises(FieldInvalid) as e:
        open_model(tiny_model, progress=False, **options)
    assert e.value.field == field


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        LLM(tmp_path / "nothing.gguf")
    (tmp_path / "x.gguf").write_bytes(b"not a model at all")
    with pytest.raises(ModelInvalid):
        LLM(tmp_path / "x.gguf")
    with pytest.raises(ModelInvalid, match="architecture 'mamba'"):
        LLM(write_tiny(tmp_path / "other.gguf", extra={"general.architecture": "mamba"}))


def test_the_catalogue_recommends_where_the_file_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRUNTIME_HOME", str(tmp_path))
    (tmp_path / "models/smollm2").mkdir(parents=True)
    write_tiny(tmp_path / "models/smollm2/135m.gguf")
    for path, expected in (("smollm2:135m", {"temperature": 0.2, "top_p": 0.9}), (write_tiny(tmp_path / "own.gguf"), {})):
        model = open_model(path, backend="torch", kv_tokens=256, progress=False)
        assert model.defaults == expected
        model.close()


def test_defaults_come_from_the_file_or_beside_it(tmp_path: Path) -> None:
    inside = write_tiny(tmp_path / "a.gguf", extra={"general.sampling.temp": 0.6, "general.sampling.top_k": 30})
    model = open_model(inside, backend="torch", kv_tokens=256, progress=False)
    assert model.defaults == {"temperature": pytest.approx(0.6), "top_k": 30} and model.name == "a"
    model.close()
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "top_p": 0.9, "eos_token_id": 2}')
    model = open_model(write_tiny(tmp_path / "b.gguf"), backend="torch", kv_tokens=256, progress=False)
    assert model.defaults == {"temperature": 0.0, "top_p": 0.9}
    model.close()
    for text in ('{"top_p": 7}', "[1]", "{"):
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ModelInvalid, match="generation_config"):
            open_model(tmp_path / "b.gguf", backend="torch", kv_tokens=256, progress=False)


def test_memory_plan_and_progress(tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = open_model(tiny_model, backend="torch", max_running=2, progress=lambda done, total: seen.append((done, total)))
    memory = model.memory
    assert (memory.kv_tokens, memory.kv, memory.weights) == (512, 512 * 2 * 2 * 16 * 4, model.weights.nbytes)
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] > 0 and available_memory() > 0
    model.close()


def test_a_bar_while_loading(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LLM(tiny_model, backend="torch", kv_tokens=256, progress=True):
        pass
    out, err = capfd.readouterr()
    assert out == "" and "loading tiny.gguf" in err
    with LLM(tiny_model, backend="torch", kv_tokens=256):
        assert capfd.readouterr() == ("", "")    # no terminal, no bar


def test_an_llm_nobody_closed_closes_itself(tiny_model: Path) -> None:
    llm = LLM(tiny_model, backend="torch", kv_tokens=256, progress=False)
    engine = llm.engine
    del llm
    gc.collect()
    assert not engine._thread.is_alive()
