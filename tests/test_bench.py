"""What stands behind `pyruntime bench`: what is counted, shared out and drawn. How fast it is, no test asks."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference_models import random_values, stored

from pyruntime import LLM, SamplingParams
from pyruntime.backends.base import expert_counts
from pyruntime.backends.native import NativeBackend
from pyruntime.bench import measure, report
from pyruntime.bench.limits import Limits
from pyruntime.bench.profile import label, profile
from pyruntime.bench.work import Work, matrices, op_bytes, op_operations
from pyruntime.models import deepseek_v2, llama
from pyruntime.plan import Attention, Experts
from pyruntime.types import Batch
from pyruntime.weights import Weights

ROOT = Path(__file__).parent.parent
CONFIG = llama.tiny(layers=2, width=1024, heads=16, kv_heads=4, head_dim=64, hidden=3072, vocab=8192)
PLAN = llama.plan(CONFIG)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(stored(PLAN, random_values(PLAN, 0)))


def test_work_is_every_matrix_once_a_token(weights):
    work = Work.of(PLAN, weights)
    c = CONFIG
    body = c.layers * (c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.hidden)
    assert sum(work.operations(7, 2).values()) == 2 * (7 * body + 2 * c.vocab * c.width)
    assert sum(work.operations(1, 0).values()) == 2 * body
    named = {name for op in PLAN.ops for name in matrices(op)}
    assert work.weight_bytes == sum(weights[name].nbytes for name in named)
    assert work.step_bytes(100, 3) == work.weight_bytes + 300 * c.layers * c.kv_heads * c.head_dim * 4
    assert work.prompt_bytes(30, 16) == 2 * work.body_bytes + work.head_bytes + (16 + 30) * work.kv_bytes


def test_a_token_meets_the_experts_it_chose():
    """All heads' matrices, `used` of `count` experts, and the shared one."""
    config = deepseek_v2.tiny()
    plan, latent, e = deepseek_v2.plan(config), config.latent, config.experts
    weights = Weights(stored(plan, random_values(plan, 0)))
    heads = config.heads * (latent.keys + latent.rope) * latent.q_rank + config.heads * latent.rank * (latent.keys + latent.values)
    attention = config.width * (latent.q_rank + config.head_dim + config.heads * latent.values) + heads
    mixture = config.width * (e.count + 3 * (e.used * e.hidden + e.shared))
    body = 3 * attention + 3 * config.width * config.hidden + 2 * mixture
    assert sum(Work.of(plan, weights).operations(5, 1).values()) == 2 * (5 * body + config.vocab * config.width)
    experts = next(op for op in plan.ops if isinstance(op, Experts))
    assert op_operations(experts, weights, 7, 1, 9, 0) == 2 * 7 * 2 * e.used * e.hidden * config.width
    assert op_bytes(experts, plan, weights, 9) == 2 * weights[experts.gate].nbytes * e.used // e.count


def test_attention_counts_the_pairs_that_meet(weights):
    op = next(op for op in PLAN.ops if isinstance(op, Attention))
    met = sum(1 for t in range(5) for s in range(12) if s <= 7 + t)
    assert op_operations(op, weights, 5, 1, 12, CONFIG.head_dim) == 4 * CONFIG.heads * CONFIG.head_dim * met


@pytest.mark.parametrize("threads", [1, 2])
def test_shares_of_a_profile_add_up(weights, threads):
    """100 ± 2 % of the step as its caller measures it, for one token and for a prompt; every op is in it."""
    backend = NativeBackend(PLAN, weights, pages=8, threads=threads)
    names = [name for op in PLAN.ops for name in matrices(op)]
    with Limits([weights[name] for name in names], backend.isa, threads, backend.paths[0]) as limits:
        rates = {kind: limits.multiply_rate(kind) for kind in Work.of(PLAN, weights).operations(1, 1)}
        read = limits.read_rate()
    for tokens in (64, 1):
        step = Batch.build([(list(range(tokens)), 64 - tokens, 64 - tokens)], tables=[[list(range(4))]])
        found = profile(backend, weights, step, read, rates, 0.2)
        assert 0.98 <= found["sum"] <= 1.02
        assert {e["op"] for e in found["ops"]} == {label(op) for op in PLAN.ops} | {"check the batch"}
        assert sum(e["count"] for e in found["ops"]) == len(PLAN.ops) + 1
        for e in found["ops"]:    # 64 tokens are one pass
            assert e["weights_read"] == sum(weights[n].nbytes for op in PLAN.ops if label(op) == e["op"] for n in matrices(op))
            assert e["weights_read_per_second"] == pytest.approx(e["weights_read"] / e["seconds"])
    backend.close()


def test_a_profile_says_which_weights_were_read():
    """Of a mixture what the step's tokens chose, not what one of them would read; beside it its rate; in the table too."""
    plan = deepseek_v2.plan(deepseek_v2.tiny())
    weights = Weights(stored(plan, random_values(plan, 0)))
    backend = NativeBackend(plan, weights, pages=8, threads=2, paths=("a16", "a16"))
    step = Batch.build([(list(range(40)), 0, 0)], tables=[[list(range(4))]])
    rates = dict.fromkeys(Work.of(plan, weights).operations(1, 1), 1e9)
    found = profile(backend, weights, step, 1e9, rates, 0.1)
    entries = {e["op"]: e for e in found["ops"]}
    used = sum(int((count > 0).sum()) for count in expert_counts(backend).values())
    experts = [op for op in plan.ops if isinstance(op, Experts)]
    size = (weights[experts[0].gate].nbytes + weights[experts[0].up].nbytes) // experts[0].of
    entry = entries[label(experts[0])]
    assert entry["weights_read"] == used * size > entry["bytes"] and entries["attention"]["weights_read"] == 0
    (told, rows), = report.profiles({"profile": {"prefill": found}})
    row = dict(zip(report.PROFILE_HEAD, next(r for r in rows if r[0] == entry["op"]), strict=True))
    assert row["weights read"] == f"{used * size / 1e6:.2f} MB" and "40 tokens" in told
    assert row["GB/s"] == f"{entry['weights_read'] / entry['seconds'] / 1e9:.1f}"
    assert next(r for r in rows if r[0] == "attention")[report.PROFILE_HEAD.index("weights read")] == ""
    backend.close()


def test_deep_steps_see_every_stored_token(tiny_model):
    """A sequence that is deep without having been read costs what a real one costs: its pages are all seen."""
    with LLM(tiny_model, max_running=2, context=200) as llm:
        deep = measure.Deep(llm, 64)
        llm.generate([1, 2, 3] * 20, SamplingParams(max_tokens=4, temperature=0.0))   # others write to the same pages
        deep.decode(64, 2)
        backend = llm.model.backend
        backend.run(deep.step(64))
        seen = backend.slot("mixed").copy()
        short = measure.Batch.build([([deep.ids[64]], 64, 16)], tables=[[[0, 1]]])
        backend.run(short)
        assert np.isfinite(seen).all() and (seen != backend.slot("mixed")).any()


def test_rounds_end_after_their_time_but_not_before_three(tiny_model):
    wanted = measure.Wanted(parts=("decode",), generate=2, rounds=50, seconds=0.0)
    told = []
    facts = measure.measure(str(tiny_model), {"threads": 1}, wanted, lambda done, total: told.append((done, total)))
    assert facts["rounds"] == measure.LEAST == len(facts["decode"]["each"])
    assert [done for done, _ in told] == list(range(1, 2 * (measure.LEAST + 1) + 1)) and {total for _, total in told} == {102}


def test_the_report_says_what_was_found(tiny_model):
    wanted = measure.Wanted(parts=("decode", "load"), generate=2, rounds=1)
    facts = measure.measure(str(tiny_model), {"threads": 1}, wanted)
    text = report.markdown(facts)
    assert all(" | ".join(row) in text for row in report.rows(facts)) and "1 threads" in text and "GB/s" in text
    assert report.load(facts) in text and report.steps(facts) in text and not list(report.profiles(facts))
    assert all(len(row) == len(report.HEAD) for row in report.rows(facts))


def test_what_lies_between_steps_is_measured(tiny_model):
    """Step and rest together are the time a token takes; one step of a kind has nothing to lie between."""
    with LLM(measure.open_bench(str(tiny_model), {"threads": 1}, wanted := measure.Wanted(parts=("decode",), generate=40))) as llm:
        bench = measure.Bench(llm, wanted)
        _, seconds = bench.decode(1, 40)
        found = bench._steps(1)
        assert len(bench.steps[1]) == 38 and min(min(pair) for pair in bench.steps[1]) > 0 and "run" not in vars(bench.backend)
        assert sum(map(sum, bench.steps[1])) < seconds and found["step_seconds"] + found["between_seconds"] < 2 * seconds / 38
        bench.decode(2, 2)
        assert bench._steps(2) == {"step_seconds": None, "between_seconds": None}
    eight = {"sequences": 8, "step_seconds": 0.0123, "between_seconds": 0.00045}
    assert report.steps({"decode": found, "batch": [eight]}).endswith("with 1, 12.30 + 0.45 ms with 8 at once")
    assert report.steps({"batch": [{"sequences": 2, **bench._steps(2)}]}) == ""


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "bench").glob("*.py")))
def test_scripts_say_what_they_do(script):
    done = subprocess.run([sys.executable, ROOT / "bench" / script, "--help"], capture_output=True, text=True, timeout=120,
                          cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"})
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_random_models_load_and_stay_finite(tmp_path):
    """One of each kind of matrix this runtime reads, made by bench/make_model.py; the mixed file has Q6_K where it should."""
    pytest.importorskip("gguf")
    sys.path.insert(0, str(ROOT / "bench"))
    import make_model

    from pyruntime import quant

    mixed = {name: kind for name, kind, _ in make_model.tensors(make_model.SHAPES["llama-1b"], "Q4_K_M")}
    assert mixed["token_embd.weight"] == "Q6_K" and mixed["blk.0.ffn_down.weight"] == mixed["blk.1.attn_v.weight"] == "Q6_K"
    assert mixed["blk.2.ffn_down.weight"] == "Q4_K" == mixed["blk.0.attn_output.weight"]
    assert mixed["blk.4.ffn_down.weight"] == "Q6_K"
    for format in make_model.FORMATS:
        if format not in quant.FORMATS:
            continue
        path = make_model.made("tiny", format, tmp_path)
        with LLM(path, threads=1, context=64) as llm:
            done = llm.generate([1, 2, 3], SamplingParams(max_tokens=4, temperature=0.0, ignore_end=True, logprobs=0))
            assert len(done.token_ids) == 4 and all(np.isfinite(one.logprob) for one in done.logprobs)
            first = next(op for op in llm.model.plan.ops if matrices(op))
            values = llm.model.weights[matrices(first)[0]].f32()
            assert abs(values.mean()) < 2e-3 and 0.01 < values.std() < 0.04


# ---- bench/: the programs beside the package ----

@pytest.fixture(scope="module")
def scripts():
    """The modules of bench/."""
    import importlib

    pytest.importorskip("gguf")
    sys.path.insert(0, str(ROOT / "bench"))
    return {name: importlib.import_module(name) for name in ("peers", "quality", "targets", "kernels")}


def test_contenders_answer_in_turns(scripts, tiny_model, monkeypatch):
    """Without a peer: the limit's process and ours, every kind of work, and a task nobody can do."""
    peers = scripts["peers"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    asked = peers.argparse.Namespace(threads=1, batch=2, prompt=32, output=4, depth=[16], options="{}", peer=[], rounds=2,
                                     folder=None, peer_python=None, sizes=[2], only=None)
    listed = peers.tasks(asked) | {"impossible": {"task": "fly"}}
    result = peers.run(str(tiny_model), asked, {"pyruntime": {}}, listed)
    for task in ("decode", "prompt 32", "decode at 16", "2 together"):
        assert len(peers.speeds(result, "pyruntime", task)[""]) == 2 and peers.best(result, "pyruntime", task) > 0
    assert "fly" in result["contenders"]["pyruntime"]["errors"]["impossible"] and result["read_bytes_per_second"] > 0
    text = peers.markdown(result)
    assert "| pyruntime | " in text and "pyruntime, impossible: " in text


def test_targets_judge_what_was_measured(scripts):
    targets, peers = scripts["targets"], scripts["peers"]
    about = {"isa": "avx2", "weight_bytes": 1000, "body_bytes": 900, "kv_bytes": 0, "operations": 1, "memory": 100}

    def found(speed: float, **more: object) -> dict:
        return {"about": about, "rss": 105, "errors": {}, "runs": [{"task": "decode", "variant": "", "each": [speed]}], **more}

    results = {"1.2B Q8_0": {"file": "f", "threads": 2, "rounds": 1, "tasks": ["decode"], "absent": [],
                             "read_bytes_per_second": 1e5, "contenders": {"pyruntime": found(90), "llama.cpp": found(60)}}}
    others = {"kernels": {"Q8_0": 0.95}, "load": {"1.2B Q8_0": {"seconds": 2, "read_seconds": 1, "times_reading": 2.0}}}
    rows = {row.what: row for row in targets.rows(results, others, peers.argparse.Namespace(prompt=512, output=64, depth=[4096]))}
    assert rows["1.2B Q8_0, decode, of reading's limit"].ratio == pytest.approx(0.9)
    assert rows["1.2B Q8_0, decode, ÷ llama.cpp"].ratio == pytest.approx(1.5)
    assert [row.met for row in rows.values()] == [True, True, True, False, True]
    speed = targets.Row("prompt", "tok/s", 2000.0, None, None, 1700, "speed")
    assert speed.met is None and targets.Row("prompt", "tok/s", 2000.0, None, None, 1700, "speed", amx=True).met
    text = targets.markdown(list(rows.values()), results)
    assert "4 of 5 judged rows met" in text and "**missed**" in text


def test_closeness_is_the_divergence_of_distributions(scripts):
    quality = scripts["quality"]
    draw = np.random.default_rng(0)
    a, b = (draw.standard_normal((6, 11)).astype(np.float32) for _ in range(2))
    distance = quality.Distance()
    distance.add(quality.log_softmax(a), b)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(-1, keepdims=True) for x in (a, b))
    assert distance.result()["mean_kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean())
    assert distance.result()["same_best"] == (a.argmax(-1) == b.argmax(-1)).mean()
    want = {0: a[:4], quality.CHUNK: a[4:]}
    assert (quality.row_range(want, 1, 3) == a[1:4]).all() and (quality.row_range(want, quality.CHUNK, 2) == a[4:]).all()


def test_closeness_of_a_model_by_role(scripts, tiny_model, tmp_path):
    pytest.importorskip("torch")
    text = tmp_path / "text.txt"
    text.write_text("the world and the hell on the other end in a that " * 30)
    asked = scripts["quality"].argparse.Namespace(threads=1, text=text, window=64, tokens=64, kv=["f16", "f32"], precision=None,
                                                  here=False, role=list(scripts["quality"].ROLES), isa=None)
    found = scripts["quality"].measure(str(tiny_model), asked)["found"]
    assert {f["positions"] for f in found} == {64, 63, 32} and {f["kv"] for f in found} == {"f16", "f32"}
    assert all(0 <= f["mean_kl"] < 1e-2 for f in found)
