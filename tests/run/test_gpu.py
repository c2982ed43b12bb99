"""The prepared run on a GPU: what it keeps, what it leaves for the next call, and what it refuses; nothing is measured here."""

import json

import pytest

from benchmarks import gpu
from benchmarks.chips import GPUS


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*arguments) -> status, with rows that are made up; ``run.asked`` are their names and limits."""
    asked = []

    def measured(name, tiny, limit):
        asked.append((name, limit))
        return "it was too slow" if name == "smc unet" else dict(seconds=0.5, share=0.4)

    def trained(name, run, folder, tiny, limit):
        asked.append((name, limit))
        return dict(FID=3.0)

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "trained", trained)
    monkeypatch.setattr(gpu, "machine", lambda: dict(device="NVIDIA H200", jax="0", kind="gpu"))

    def run(*arguments):
        return gpu.main([*arguments, "--out", str(tmp_path)])

    run.asked = asked
    return run


def test_what_is_kept_is_not_measured_again(run, tmp_path, capsys):
    assert run("--only", "dit_b2", "smc") == 1
    assert "smc unet is left: it was too slow" in capsys.readouterr().out
    assert run("--only", "dit_b2", "smc", "Fashion-MNIST EDM") == 1
    names = [name for name, _ in run.asked]
    assert names.count("smc unet") == 2
    assert names.count("training dit_b2") == 1
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["training dit_b2"] == dict(device="NVIDIA H200", jax="0", seconds=0.5, share=0.4)
    assert rows["trained Fashion-MNIST EDM"]["FID"] == 3.0
    assert "| training dit_b2 | NVIDIA H200 | seconds 0.5, share 0.4 |" in (tmp_path / "table.md").read_text()


def test_every_row_has_a_limit_within_the_time_of_all(run):
    assert run("--seconds", "100") == 1
    assert {name for name, _ in run.asked} == {*gpu.MEASURED, *gpu.runs()}
    assert all(0 < limit <= 100 for _, limit in run.asked)


def test_no_row_begins_without_time(run, capsys):
    assert run("--seconds", "5", "--only", "training") == 1
    assert not run.asked
    assert "training adm is left: no time" in capsys.readouterr().out


def test_utilisation_is_of_the_peak_of_the_device(monkeypatch):
    monkeypatch.setattr(gpu, "peak", lambda: GPUS["H200"].peak)
    found = gpu.utilisation(395e12, dict(seconds=2.0), 0.4)
    assert (found["tflops"], found["share"], found["goal"]) == (197.5, 0.25, 0.4)
    monkeypatch.setattr(gpu, "peak", lambda: None)
    assert "share" not in gpu.utilisation(395e12, dict(seconds=2.0), 0.4)


def test_the_flops_of_a_forward_pass_are_those_of_its_products():
    spec = gpu.size("dit_b2", True)
    net, n = spec.net, 5
    # 4 tokens of 64 numbers into 16 and back; qkv, two products of the attention, out and the MLP of one block.
    tokens = 2 * 4 * (2 * 64 * 16 + 16 * 48 + 2 * 4 * 16 + 16 * 16 + 2 * 16 * 64)
    # The embedding of the noise, modulations of the block and of the end.
    vectors = 2 * (16 * 16 + 16 * 16 + 16 * 6 * 16 + 16 * 2 * 16)
    assert (net.width, net.depth, spec.event) == (16, 1, (8, 8, 4))
    found = gpu.forward_flops(spec, n) / n
    # Sums, norms and softmax of so small a network come on top.
    assert tokens + vectors < found < 1.5 * (tokens + vectors)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "speed"], "--only speed: expected a part of one of training dit_b2"),
        (["--seconds", "0"], "--seconds 0.0: expected a number above 0"),
        (["--seconds", "nan"], "expected a number above 0"),
    ],
)
def test_what_cannot_be_asked_for_is_said(arguments, said, run, capsys):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert said in capsys.readouterr().err + str(ended.value)
    assert not run.asked


def test_small_rows_and_those_of_a_cpu_are_not_kept_as_those_of_a_gpu(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--tiny"])
    assert "--tiny without --out" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "machine", lambda: dict(device="cpu", jax="0", kind="cpu"))
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "the device is a cpu: expected a GPU, or --tiny" in capsys.readouterr().err
