import json
from types import SimpleNamespace

import jax
import pytest

from experiments import accelerators as module
from experiments.accelerators import Target, accelerators


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "ARRAYS", 2)
    monkeypatch.setattr(module, "SHAPE", (16, 32))


def target(package):
    return Target("this machine", package, lambda: SimpleNamespace(devices=jax.devices()[:1]), host_memory=True)


def test_every_case_is_compiled_and_looked_at(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TARGETS", (target("jax"), target("no-such-package")))
    accelerators(output=tmp_path)
    rows = json.loads((tmp_path / "accelerators.json").read_text())
    assert [row["case"] for row in rows] == list(module.CASES)
    assert {row["idle_copies"] for row in rows} == {0}
    assert all(row["collectives"] == {} for row in rows)
    alone, *jumps = rows
    assert alone["jump_kernels"] == 0
    assert all(row["temporaries"] < alone["temporaries"] + 1e5 for row in jumps)
    assert "| this machine | float32 |" in (tmp_path / "README.md").read_text()


def test_copies_and_collectives_are_counted():
    text = """
%nothing (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4] parameter(0)
  ROOT %copy.1 = f32[4,4]{1,0} copy(%p)
  %copy-start.1 = (f32[4,4]{1,0:S(1)}, f32[4,4]{1,0}, u32[]) copy-start(%p)
  %copy-start.2 = (f32[4,4]{1,0:S(5)}, f32[4,4]{1,0}, u32[]) copy-start(%p)
  %copy-start.3 = (f32[4,4]{1,0:S(5)}, f32[4,4]{1,0}, u32[]) copy-start(%p)
}

%something (q: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4]{1,0} fusion(%q), kind=kLoop
  ROOT %copy.2 = f32[4,4]{1,0} copy(%a)
}

ENTRY %main (x: f32[4,4]) -> f32[4,4] {
  %small = s32[] copy(%n)
  %sum = f32[] all-reduce(%y)
  ROOT %c = f32[4,4] conditional(%n, %x, %x), branch_computations={%nothing, %something}
}
"""
    analysis = SimpleNamespace(temp_size_in_bytes=7)
    compiled = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: analysis)
    found = module.inspect("target", "case", compiled)
    assert (found.temporaries, found.collectives) == (7, {"all-reduce": 1})
    assert (found.idle_copies, found.idle_staged, found.idle_host_moves) == (1, 1, 2)
    assert found.jump_kernels == 1 / module.ARRAYS


def test_nothing_to_compile_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TARGETS", (target("no-such-package"),))
    with pytest.raises(ValueError, match="nothing to compile for: install one of no-such-package"):
        accelerators(output=tmp_path / "out")
    assert not list(tmp_path.iterdir())
