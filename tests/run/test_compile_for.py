"""Programs for TPUs: what is read in their text against texts that are counted by hand, and the command around it."""

import dataclasses
import importlib.util
import json
import re
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compile_for, hlo
from benchmarks.chips import TPUS
from benchmarks.compile_for import Row
from tests.run.conftest import ROOT

# Two chips in a row of a mesh of two by four: a loop of three with a gather in it, a reduction in pieces under computation, a
# reduction of which a part is kept, a pair, one over a listed group, and the mean of a metric.
# ruff: noqa: E501
TEXT = """HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[8,32] {
  %input = bf16[64,32]{1,0} parameter(0)
  %all-reduce.9 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  ROOT %slice = bf16[8,32]{1,0} dynamic-slice(%all-reduce.9)
}

%begun (p: f32[256]) -> f32[1024] {
  %p = f32[256] parameter(0)
  ROOT %all-gather.1 = f32[1024]{0:T(1024)} all-gather(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%ended (q: f32[256]) -> f32[1024] {
  %q = f32[256] parameter(0)
  ROOT %all-gather.2 = f32[1024]{0:T(1024)} all-gather(%q), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%body (state: (s32[], bf16[16,16])) -> (s32[], bf16[16,16]) {
  %state = (s32[], bf16[16,16]) parameter(0)
  %part = bf16[16,16]{1,0} get-tuple-element(%state), index=1
  %all-gather.3 = bf16[32,16]{1,0} all-gather(%part), channel_id=7, replica_groups=[4,2]<=[8], dimensions={0}, metadata={op_name="jit(f)/while/body/net/block1/dot"}, backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[], bf16[16,16]) tuple(%i, %part)
}

%condition (state: (s32[], bf16[16,16])) -> pred[] {
  %most = s32[]{:T(128)} constant(3)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %most), direction=LT
}

ENTRY %main (a: bf16[64,32]) -> bf16[8,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %scattered = bf16[8,32]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %first = f32[1024] fusion(%b), kind=kCustom, calls=%begun, metadata={op_name="jit(f)/net/block0/dot"}, backend_config={"estimated_cycles":"70"}
  %last = f32[1024] fusion(%b), kind=kCustom, calls=%ended
  %loop = (s32[], bf16[16,16]) while(%start), condition=%condition, body=%body
  %started = (f32[128]{0}, f32[512]{0}) all-gather-start(%c), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %done = f32[512]{0} all-gather-done(%started)
  %all-reduce.4 = (f32[600]{0}, bf16[10,10]{1,0}) all-reduce(%d, %e), channel_id=9, replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  %all-reduce.5 = f32[] all-reduce(%g), channel_id=10, to_apply=%add
  ROOT %out = bf16[8,32]{1,0} copy(%scattered)
}
"""


def test_collectives_are_counted_once_with_their_bytes_and_trips():
    found = {(each.kind, each.sent, each.group, each.times) for each in hlo.collectives(TEXT, 8)}
    assert found == {
        ("reduce-scatter", 64 * 32 * 2, 8, 1),
        ("all-gather", 1024 * 4, 4, 1),
        ("all-gather", 32 * 16 * 2, 2, 3),
        ("all-gather", 512 * 4, 4, 1),
        ("all-reduce", 600 * 4 + 100 * 2, 2, 1),
        ("all-reduce", 4, 8, 1),
    }
    assert len(hlo.collectives(TEXT, 8)) == len(found)
    assert [each.kind for each in hlo.collectives(TEXT, 8) if each.sent == 4 and each.small] == ["all-reduce"]


@pytest.mark.parametrize(
    ("kind", "share"), [("all-reduce", 2 * 3 / 4), ("all-gather", 3 / 4), ("reduce-scatter", 3 / 4), ("collective-permute", 1.0)]
)
def test_bytes_that_a_chip_has_to_send(kind, share):
    # Each of four has a quarter of the sum to make, and all others to hand on: three quarters in, and three quarters out.
    assert hlo.Collective(kind, 1000, 4, 5, "").bytes == 5 * 1000 * share


def test_loops_and_expected_cycles():
    assert hlo.loops(TEXT) == [3]
    assert hlo.cycles(TEXT) == {"jit(f)/while/body/net/block/dot": 300, "jit(f)/net/block/dot": 70}
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.loops("HloModule empty")


def test_the_trips_of_a_compiled_loop():
    text = jax.jit(lambda x: jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, None, length=7)[0]).lower(jnp.eye(8)).compile()
    assert hlo.loops(text.as_text()) == [7]
    assert hlo.collectives(text.as_text(), 1) == []


KNOWN = dict(topology="v5e:2x2", chips=4, config="small", program="training", mesh="data", batch=16, parameters=10, jax="0")


def row(**changed):
    none = dict.fromkeys(("flops", "bytes", "arguments", "temporaries", "memory", "compute", "traffic", "network", "compiled"), 1.0)
    return Row(**KNOWN | none | dict(calls=1, fits=True, exchanged={}) | changed)


def read(program="training", text=TEXT, **sizes):
    memory = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0) | sizes
    memory = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in memory.items()})
    known = KNOWN | dict(chips=8, program=program)
    return compile_for.read({"flops": 394e9, "bytes accessed": 819e6}, memory, text, TPUS["v5e"], known, 1.0)


def test_a_row_is_a_roofline():
    found = read(argument=100, output=90, alias=80, temp=7, generated_code=3)
    assert found.memory == 100 + 90 - 80 + 7 + 3
    assert found.fits
    # 394 GFLOP of 197 TFLOP/s, 819 MB of 819 GB/s.
    assert (found.compute, found.traffic) == pytest.approx((2e-3, 1e-3))
    sent = 4096 * 7 / 8 + 4096 * 3 / 4 + 1024 / 2 + 2048 * 3 / 4 + 2600 / 2 * 2 + 4 * 7 / 8 * 2
    assert found.network == pytest.approx(sent / 200e9)
    # The gather of the loop is among the small ones, and counts once: the loop of a step is not that of a sampler.
    assert {kind: many for kind, (many, _) in found.exchanged.items()} == {
        "all-gather": 2, "reduce-scatter": 1, "all-reduce": 1, "few numbers": 2,
    }  # fmt: skip
    assert found.limit == "compute"
    assert found.bound == pytest.approx(2e-3 + sent / 200e9)
    assert read("sampler").calls == 3
    assert not read(argument=17 * 2**30).fits
    assert read(argument=17 * 2**30).limit == "memory"


def test_what_does_not_fit_says_how_much_it_needs():
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 35.31G of 15.75G hbm. Exceeded hbm capacity by 19.56G."
    found = compile_for.too_large(said, KNOWN, 1.0)
    assert (found.fits, found.limit, found.memory) == (False, "memory", 35.31 * 2**30)
    assert "| no |" in compile_for.line(found)
    with pytest.raises(RuntimeError, match="INTERNAL: something else"):
        compile_for.too_large("INTERNAL: something else\nmore", KNOWN, 1.0)


def test_a_network_is_extrapolated_in_its_depth():
    # DiT-B/2 has twelve blocks: what one needs is added ten and a half, or 10 / 2 = 5, times.
    shallow = row(config="dit_b2", flops=10.0, memory=1e9, exchanged={"all-gather": (5, 50.0), "all-reduce": (1, 8.0)})
    deeper = row(config="dit_b2", flops=14.0, memory=5e9, exchanged={"all-gather": (9, 90.0), "all-reduce": (1, 8.0)})
    found = compile_for.extrapolated("dit_b2", shallow, deeper, TPUS["v5e"], (2, 4))
    assert found.flops == 10 + 5 * 4
    assert found.exchanged == {"all-gather": (25, 250.0), "all-reduce": (1, 8.0)}
    assert (found.memory, found.fits) == (21e9, False)
    assert found.depths == (2, 4)
    assert "dit_b2 (2, 4)" in compile_for.line(found)
    assert found.name != row(config="dit_b2").name


def test_the_configs_are_those_of_the_papers():
    import math

    count = lambda name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(compile_for.parameters(compile_for.config(name))[1]))
    # arXiv 2212.09748, table 1: 130 and 675 million.
    assert count("dit_b2") == pytest.approx(130e6, rel=0.01)
    assert count("dit_xl2") == pytest.approx(675e6, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a TOPOLOGY such as v5e:2x2"),
        (["v7:2x2"], "TOPOLOGY = v7:2x2: expected such as v5e:2x2"),
        (["v5e:2x2x2"], "TOPOLOGY = v5e:2x2x2"),
        (["v5p:2x2"], "TOPOLOGY = v5p:2x2"),
        (["v5e"], "TOPOLOGY = v5e:"),
        (["v5e:2x2", "dit"], "CONFIG = dit: expected one of small, dit_b2"),
        (["v5e:2x2", "--programs", "train"], "invalid choice: 'train'"),
        (["v5e:2x2", "--batch", "0"], "--batch 0: expected at least 1"),
        (["v5e:2x2", "--timeout", "nan"], "--timeout nan: expected at least 1"),
        (["v5e:2x2", "--depths", "4", "2"], "--depths 4 2: expected two numbers of blocks"),
        (["v5e:2x2", "small"], "libtpu is not installed"),
    ],
)
def test_what_cannot_be_asked_for_is_said(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        compile_for.main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_rows_that_are_kept_are_not_compiled_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    asked = []

    def apart(arguments, timeout):
        asked.append(arguments[3])
        if arguments[3] == "smc":
            return 1, "it was too slow", None
        return 0, "", row(program=arguments[3])

    monkeypatch.setattr(compile_for, "apart", apart)
    command = ["v5e:2x2", "small", "--meshes", "data", "--out", str(tmp_path), "--programs"]
    assert compile_for.main([*command, "training"]) == 0
    assert compile_for.main([*command, "training", "smc", "sampler"]) == 1
    assert asked == ["training", "smc", "sampler"]
    assert "small, smc, data is left out: it was too slow" in capsys.readouterr().err
    kept = json.loads((tmp_path / "tpu.json").read_text())
    assert [each["program"] for each in kept] == ["training", "sampler"]
    assert len((tmp_path / "tpu.txt").read_text().splitlines()) == 4
    assert compile_for.main([*command, "training", "--again"]) == 0
    assert asked[-1] == "training"
    assert compile_for.main(["--table", "--out", str(tmp_path)]) == 0
    assert list(compile_for.kept(tmp_path).values()) == [row(program="training"), row(program="sampler")]


def test_the_process_of_a_row_compiles_what_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    asked = []
    monkeypatch.setattr(compile_for, "examined", lambda *arguments: asked.append(arguments) or row(depths=(2, 4)))

    def run(command, **options):
        assert options["env"]["TPU_SKIP_MDS_QUERY"] == "1"
        assert compile_for.main(command[3:]) == 0
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(compile_for.subprocess, "run", run)
    command = ["v5e:8x8", "dit_b2", "--programs", "smc", "--meshes", "hybrid", "--batch", "3", "--ops", "5", "--depths", "2", "4"]
    assert compile_for.main([*command, "--out", str(tmp_path)]) == 0
    assert asked == [("v5e:8x8", "dit_b2", "smc", "hybrid", 3, 5, (2, 4))]
    assert list(compile_for.kept(tmp_path).values()) == [row(depths=(2, 4))]


def test_the_page_has_the_rows_that_are_kept():
    page = (ROOT / "docs" / "scaling.md").read_text()
    rows = compile_for.kept(compile_for.KEPT)
    assert rows
    for each in rows.values():
        assert compile_for.line(each) in page, each.name
    assert len(re.findall(r"^\| v\d\w*:", page, re.M)) == len(rows)


# With libtpu ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install '.[tpu]'")
@pytest.mark.parametrize(("program", "mesh"), [("training", "data"), ("training", "sharded"), ("smc", "data")])
def test_what_chips_exchange(program, mesh, tmp_path):
    """Data parallel: one sum of the gradients. Particles of a population on one chip: nothing. Fully sharded: every kernel once."""
    command = ["v5e:2x2", "small", "--programs", program, "--meshes", mesh, "--out", str(tmp_path)]
    assert compile_for.main(command) == 0
    (found,) = compile_for.kept(tmp_path).values()
    many = {kind: number for kind, (number, _) in found.exchanged.items() if kind != "few numbers"}
    assert dataclasses.asdict(found)["chips"] == 4
    if program == "smc":
        assert found.exchanged == {}
    elif mesh == "data":
        assert many == {"all-reduce": 1}
        # In bfloat16, 2 (n - 1) / n of every parameter.
        assert found.exchanged["all-reduce"][1] == pytest.approx(1.5 * 2 * found.parameters, rel=0.01)
    else:
        assert many["all-gather"] <= 13
        assert many["reduce-scatter"] == 1
