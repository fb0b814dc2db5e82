"""What the process may use of the machine."""
from __future__ import annotations

import math
import os

import pytest

from pyruntime import machine
from pyruntime._core import _engine
from pyruntime.errors import FieldInvalid


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("PYRUNTIME_THREADS", "PYRUNTIME_ISA", "PYRUNTIME_POOL", "PYRUNTIME_PRECISION", "PYRUNTIME_PATHS"):
        monkeypatch.delenv(name, raising=False)


def test_threads_are_the_cpus_this_process_may_use(monkeypatch):
    assert 1 <= machine.threads() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("PYRUNTIME_THREADS", "7")
    assert machine.threads() == 7
    assert machine.threads(3) == 3
    monkeypatch.setenv("PYRUNTIME_THREADS", "")
    assert machine.threads() == machine.cpus()


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "1025", "²", " 2"])
def test_threads_outside_their_range_are_refused(monkeypatch, value):
    monkeypatch.setenv("PYRUNTIME_THREADS", value)
    with pytest.raises(FieldInvalid, match="PYRUNTIME_THREADS"):
        machine.threads()


@pytest.mark.parametrize("files, expected", [
    ({}, math.inf),
    ({"cpu.max": "max 100000"}, math.inf),
    ({"cpu.max": "150000 100000"}, 1.5),
    ({"cpu.max": "damaged"}, math.inf),
    ({"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "900000 100000"}, 3.0),
    ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "300000 100000"}, 0.5),
])
def test_a_quota_of_version_2(tmp_path, files, expected):
    (tmp_path / "membership").write_text("0::/a/b\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert machine.quota(tmp_path / "membership", tmp_path) == expected


@pytest.mark.parametrize("granted, period, expected", [
    ("-1", "100000", math.inf), ("250000", "100000", 2.5), ("1", "0", math.inf)])
def test_a_quota_of_version_1(tmp_path, granted, period, expected):
    (tmp_path / "membership").write_text("12:pids:/x\n4:cpu,cpuacct:/docker/c0ffee\n0::/\n")
    group = tmp_path / "cpu,cpuacct" / "docker" / "c0ffee"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(granted)
    (group / "cpu.cfs_period_us").write_text(period)
    assert machine.quota(tmp_path / "membership", tmp_path) == expected


def test_no_control_groups_means_no_quota(tmp_path):
    assert machine.quota(tmp_path / "nothing", tmp_path) == math.inf


def test_instruction_sets_by_name(monkeypatch):
    sets = dict(_engine.isas())
    assert list(sets)[0] == "scalar" and sets["scalar"] == ""
    assert machine.isa() == [name for name, missing in sets.items() if not missing][-1] == _engine.best_isa()
    monkeypatch.setenv("PYRUNTIME_ISA", "scalar")
    assert machine.isa() == "scalar"
    monkeypatch.setenv("PYRUNTIME_ISA", "mmx")
    with pytest.raises(FieldInvalid, match="mmx.*scalar, avx2, avx512"):
        machine.isa()


def test_a_set_this_machine_lacks_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(_engine, "isas", lambda: (("scalar", ""), ("avx2", "avx2 fma")))
    with pytest.raises(FieldInvalid, match="lacks avx2 fma"):
        machine.isa("avx2")


def test_features_agree_with_the_system():
    """/proc/cpuinfo lists what both the CPU and the kernel support."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next(line for line in file if line.startswith("flags")).split(":")[1].split()
    except (OSError, StopIteration):
        pytest.skip("no x86 /proc/cpuinfo")
    wide = "avx512f avx512bw avx512vl avx512dq avx512_vnni"
    needs = {"scalar": "", "avx2": "avx2 fma f16c", "avx512": wide, "avx512bf16": f"{wide} avx512_bf16",
             "amx": f"{wide} avx512_bf16 amx_tile amx_int8 amx_bf16"}
    for name, missing in _engine.isas():
        assert missing.split() == [flag for flag in needs[name].split() if flag not in flags]


def test_pools_by_name(monkeypatch):
    assert machine.pool() == "own"
    monkeypatch.setenv("PYRUNTIME_POOL", "openmp")
    assert machine.pool() == "openmp" and machine.pool("own") == "own"
    with pytest.raises(FieldInvalid, match="own, openmp"):
        machine.pool("tbb")


def test_a_precision_takes_the_fastest_path_it_allows(monkeypatch):
    for isa in ("scalar", "avx2", "avx512", "neon"):     # bf16 products without instructions for them gain nothing
        assert all(machine.paths(precision, isa) == ("a16", "a16") for precision in ("balanced", "precise", "throughput"))
    assert {isa: machine.paths("int8", isa)[0] for isa in ("scalar", "avx2", "avx512", "avx512bf16", "neon", "amx")} == {
        "scalar": "a16", "avx2": "a8", "avx512": "a8", "avx512bf16": "a8", "neon": "a8", "amx": "bf16"}
    assert {machine.paths("int8", isa)[1] for isa in ("avx2", "avx512bf16", "amx")} == {"a16"}
    assert machine.paths("balanced", "avx512bf16") == ("a16_bf16", "a16")      # those it has gain with float weights
    assert machine.paths("throughput", "avx512bf16") == ("a16_bf16", "a16_bf16")
    assert machine.paths("precise", "avx512bf16") == ("a16", "a16") and machine.paths("balanced", "amx") == ("bf16", "a16")
    assert machine.paths("throughput", "amx") == ("bf16", "bf16") and machine.paths("precise", "amx") == ("a16", "a16")
    assert machine.precision() == "balanced"
    monkeypatch.setenv("PYRUNTIME_PRECISION", "precise")
    assert machine.precision() == "precise" and machine.precision("throughput") == "throughput"
    with pytest.raises(FieldInvalid, match="balanced, precise, throughput, int8"):
        machine.precision("exact")


def test_paths_can_be_named_outright(monkeypatch):
    assert machine.paths("precise", "scalar", ("bf16", "a16")) == ("bf16", "a16")
    monkeypatch.setenv("PYRUNTIME_PATHS", "a16,bf16")
    assert machine.paths("precise", "scalar") == ("a16", "bf16")
    for wrong in ("bf16", "a16,a16,a16", "a16,f32", ","):
        monkeypatch.setenv("PYRUNTIME_PATHS", wrong)
        with pytest.raises(FieldInvalid, match="PYRUNTIME_PATHS is .* a16, a16_bf16, bf16, a8"):
            machine.paths("precise", "scalar")
