"""The service over the real model: streaming streams, many at once answer as alone."""
from __future__ import annotations

import threading

import pytest
from server_fixture import serving

from pyruntime.client import Client

QUESTIONS = ["Why is the sky blue?", "Name three rivers.", "Write a haiku about rain.", "What is 12 times 12?",
             "Explain tides to a child.", "Who was Ada Lovelace?", "Translate 'good morning' into French.",
             "List the primes below 30."]


@pytest.fixture(scope="module")
def client(smollm_llm):
    with serving({"smollm2:135m": smollm_llm}) as server, Client(server.address, timeout=300) as client:
        yield client


def talk(question):
    return [{"role": "user", "content": question}]


def test_the_first_delta_comes_before_a_quarter_of_a_256_token_call(client, smollm_llm):
    before = smollm_llm.stats().generated_tokens
    stream = client.stream_chat(talk(QUESTIONS[0]), max_tokens=256, ignore_end=True, temperature=0.0)
    first = next(stream)
    assert first.text and smollm_llm.stats().generated_tokens - before < 64
    assert first.output_tokens + sum(delta.output_tokens for delta in stream) == 256


def test_eight_streams_at_once_equal_their_solo_runs(client):
    def params(i):
        return dict(max_tokens=40, seed=i, temperature=0.8 * (i % 2), token_ids=True)

    def read(i):
        deltas = list(client.stream_chat(talk(QUESTIONS[i]), **params(i)))
        return "".join(d.text for d in deltas), [t for d in deltas for t in d.token_ids]

    alone = [client.chat(talk(q), **params(i)).candidates[0] for i, q in enumerate(QUESTIONS)]
    together: dict[int, tuple[str, list[int]]] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: read(i)})) for i in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {i: (c.message.text, list(c.token_ids)) for i, c in enumerate(alone)}
    assert len({text for text, _ in together.values()}) == len(QUESTIONS)


def test_it_answers_the_question(client):
    answer = client.chat(talk("What is the capital of France? Answer in one word."), max_tokens=12, temperature=0.0)
    assert "Paris" in answer.candidates[0].message.text and answer.usage.output_tokens <= 12
