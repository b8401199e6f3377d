"""Collectives are read from texts in the compilers' notations."""

import pytest

from gpt2_jax.topology import hlo

# As the TPU's compiler writes: a loop of three with a scattered gradient, a group of one, a Pallas call over lines.
TPU = """HloModule jit_step

%all-reduce-scatter.1 (input: f32[64,8]) -> f32[8,8] {
  %input = f32[64,8]{1,0} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[8,8]{1,0} dynamic-slice(%all-reduce.1, %id, %zero)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %gather = bf16[64,8]{1,0:T(8,128)} all-gather(%x), replica_groups=mesh['a'=1,'b'=8] {'b'}, metadata={op_name="wte"}
  %scatter = f32[8,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="grad"}
  %alone = f32[64]{0} all-reduce(%z), replica_groups=[8,1]<=[8], to_apply=%add
}

%condition (state: (s32[], f32[64,8])) -> pred[] {
  %length = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %length), direction=LT
}

ENTRY %main (p: f32[8,8]) -> f32[8,8] {
  %loop = (s32[], f32[64,8]) while(%tuple), condition=%condition, body=%body
  %kernel = f32[8]{0} custom-call(%q), custom_call_target="tpu_custom_call", backend_config={"a": {
}}
  %pair = (f32[4]{0}, f32[6]{0}) all-reduce(%m, %n), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
}
"""
# As the GPU's does: asynchronous, types with what goes in, the loop's length beside it.
GPU = """HloModule jit_step

%body (p: f32[2]) -> f32[2] {
  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}
  %d = f32[8]{0} all-gather-done(%s)
  %r = f32[2]{0} reduce-scatter(%d), replica_groups=[1,4]<=[4], to_apply=%add
  %t = ((f32[4]{0}, f32[8]{0}), (f32[1]{0}, f32[2]{0})) reduce-scatter-start(%d), replica_groups={{0,1,2,3}}
  %v = ((f32[8]{0}), f32[8]{0}) all-to-all-start(%d), replica_groups={{0,1,2,3}}
}

%condition (p: f32[2]) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %w = f32[2] while(%p), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %u = f32[2] while(%w), condition=%condition, body=%body
  %m = (f32[2]{0}, f32[2]{0}) collective-permute-start(%u), source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}
"""


def counts(program):
    return sorted((c.kind, c.executions, c.bytes, c.group_size) for c in program.collectives)


def test_a_tpus_text():
    program = hlo.read(TPU)
    assert counts(program) == [
        ("all-gather", 3, 64 * 8 * 2, 8), ("all-reduce", 1, 40, 2), ("reduce-scatter", 3, 64 * 8 * 4, 8)
    ]  # fmt: skip
    assert {c.kind: c.groups for c in program.collectives}["all-reduce"] == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert {c.name for c in program.collectives} == {"wte", "grad", ""}
    assert program.custom_calls == {"tpu_custom_call": 1} and program.unknown_loops == 0


def test_a_gpus_text():
    program = hlo.read(GPU)
    assert counts(program) == [
        ("all-gather", 1, 32, 4), ("all-gather", 5, 32, 4), ("all-to-all", 1, 32, 4), ("all-to-all", 5, 32, 4),
        ("collective-permute", 1, 8, 2), ("reduce-scatter", 1, 32, 4), ("reduce-scatter", 1, 48, 4),
        ("reduce-scatter", 5, 32, 4), ("reduce-scatter", 5, 48, 4),
    ]  # fmt: skip
    assert program.unknown_loops == 1


@pytest.mark.parametrize(
    ("notation", "groups"),
    [("{{0,1},{2,3}}", ((0, 1), (2, 3))), ("[2,2]<=[4]", ((0, 1), (2, 3))), ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
     ("mesh['x'=2,'y'=2] {'y'}", ((0, 1), (2, 3))), ("mesh['x'=2,'y'=2] {'x'}", ((0, 2), (1, 3))),
     ("mesh['x'=2,'y'=2] {'x','y'}", ((0, 1, 2, 3),)),
     ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", ((0, 2), (1, 3)))],
)  # fmt: skip
def test_groups(notation, groups):
    line = f"%a = f32[2] all-reduce(%p), replica_groups={notation}, to_apply=%add"
    (found,) = hlo.read(f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  {line}\n}}\n").collectives
    assert found.groups == groups


def test_no_groups_are_one_of_all():
    line = "%a = f32[2] all-reduce(%p), replica_groups={}, to_apply=%add"
    (found,) = hlo.read(
        f"HloModule a, num_partitions=3\nENTRY %main (p: f32[2]) -> f32[2] {{\n{line}\n}}\n"
    ).collectives
    assert found.groups == ((0, 1, 2),)


def test_what_is_not_known_is_not_counted_as_nothing():
    line = "%a = f32[2] all-reduce(%p), replica_groups=<new notation>, to_apply=%add"
    with pytest.raises(ValueError, match="unknown notation of groups of devices"):
        hlo.read(f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  {line}\n}}\n")
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.read("nothing")


def test_what_goes_over_the_network_between_slices():
    line = (
        "%s = (f32[4,8]{1,0}, u32[], token[]) send(%x, %t), is_host_transfer=true, frontend_attributes={"
        '_xla_megascale_target="{1:2}x{0:7}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    (found,) = hlo.read(f"ENTRY %main (p: f32[2]) -> f32[2] {{\n  {line}\n}}\n").collectives
    assert (found.kind, found.bytes, found.groups, found.between_slices) == ("all-reduce", 128, ((1, 2),), True)
