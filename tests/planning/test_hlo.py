"""Reading of compiled programs, against programs whose loops, products and collectives are known."""

import jax
import jax.numpy as jnp
import pytest

from jebm.planning import hlo
from jebm.planning.hlo import Collectives


def lines_of(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.executed(jax.jit(function).lower(*arrays).compile().as_text())


def test_products_in_nested_loops_are_multiplied_by_trip_counts():
    def f(w, x):
        inner = lambda x, _: (jnp.tanh(x @ w), None)  # noqa: E731
        outer = lambda x, _: (jnp.sin(jax.lax.scan(inner, x, length=5)[0]), None)  # noqa: E731
        return jax.lax.scan(outer, x @ w, length=7)[0]

    lines = lines_of(f, (16, 16), (6, 16))
    one = 2 * 6 * 16 * 16
    assert hlo.flops(lines) == (1 + 5 * 7) * one
    assert hlo.products(lines, looped=True) == [((6, 16), (6, 16), (16, 16))]
    assert len(hlo.products(lines, looped=False)) == 1


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 2), "SAME"), ((2, 1), "VALID")])
def test_operations_of_a_convolution_and_of_its_gradient_leave_zeros_out(strides, padding):
    def convolve(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=layout)

    x, k = (2, 8, 7, 5), (3, 3, 5, 4)
    ones = [jnp.ones(shape) for shape in (x, k)]
    # with ones everywhere a sum over the result counts the products
    expected = 2 * int(jnp.sum(convolve(*ones)))
    assert hlo.flops(lines_of(convolve, x, k)) == expected
    gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), (0, 1))
    assert hlo.flops(lines_of(gradient, x, k)) == 3 * expected


# what a compiler for a TPU writes: no trip count but the condition's constant; one collective in pieces
TEXT = """\
HloModule jit_f, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%piece (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0:T(8,128)} parameter(0)
  ROOT %gathered = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, dimensions={0}
}

%body (arg: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %arg = (s32[], f32[4,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %again = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%piece
  %reduced = f32[4,8]{1,0} all-reduce(%x), channel_id=9, to_apply=%add, backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[], f32[4,8]{1,0}) tuple(%i, %reduced)
}

%condition (arg.1: (s32[], f32[4,8])) -> pred[] {
  %arg.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(29)
  %j = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (x.1: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = f32[16,8]{1,0} fusion(%x.1), kind=kCustom, calls=%piece, backend_config={"estimated_cycles":"40"}
  %sent = (f32[4,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x.1), channel_id=8, dimensions={0}
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_and_cycles_of_a_program_for_a_tpu():
    lines = hlo.executed(TEXT)
    assert hlo.collectives(lines, looped=True) == {"all-reduce": Collectives(29, 29 * 4 * 8 * 4)}
    # the one that goes on beside the loop, once, and one that is started
    assert hlo.collectives(lines, looped=False) == {"all-gather": Collectives(2, 4 * 8 * (16 + 8))}
    assert hlo.cycles(lines) == 40 + 29 * 100


def test_what_the_compiler_knows_of_a_loop_comes_first():
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert hlo.cycles(hlo.executed(known)) == 40 + 3 * 100


# what a compiler for a GPU writes: products are calls of libraries, whose shapes are of another order for gradients
GPU = """\
HloModule jit_f

%slice (bank: f32[100,8], i: s32[]) -> f32[4,8] {
  %bank = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %rows = f32[4,8]{1,0} dynamic-slice(%bank, %i, %zero), dynamic_slice_sizes={4,8}
}

%write (bank.1: f32[100,8], rows.1: f32[4,8], i.1: s32[]) -> f32[100,8] {
  %bank.1 = f32[100,8]{1,0} parameter(0)
  %rows.1 = f32[4,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %written = f32[100,8]{1,0} dynamic-update-slice(%bank.1, %rows.1, %i.1, %zero.1)
}

ENTRY %main (x: f32[2,8,7,5], k: f32[4,3,3,5], g: f32[2,4,7,4], a: bf16[6,16], b: bf16[16,9]) -> f32[] {
  %x = f32[2,8,7,5]{3,2,1,0} parameter(0)
  %k = f32[4,3,3,5]{3,2,1,0} parameter(1)
  %g = f32[2,4,7,4]{3,2,1,0} parameter(2)
  %a = bf16[6,16]{1,0} parameter(3)
  %b = bf16[16,9]{1,0} parameter(4)
  %bank.2 = f32[100,8]{1,0} parameter(5)
  %number = s32[] constant(7)
  %y = (f32[2,4,7,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), WINDOW, custom_call_target="__cudnn$convForward"
  %dx = (f32[2,8,7,5]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), WINDOW, custom_call_target="__cudnn$convBackwardInput"
  %dk = (f32[4,3,3,5]{3,2,1,0}, u8[9]{0}) custom-call(%x, %g), WINDOW, operand_precision={highest,highest}, \
custom_call_target="__cudnn$convBackwardFilter"
  %c = (bf16[6,9]{1,0}, s8[0]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config=\
{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %read = f32[4,8]{1,0} fusion(%bank.2, %number), kind=kLoop, calls=%slice
  %again = f32[100,8]{1,0} fusion(%bank.2, %read, %number), kind=kLoop, calls=%write
  ROOT %other = f32[] custom-call(%again), custom_call_target="unknown"
}
""".replace("\\\n", "").replace("WINDOW", "window={size=3x3 stride=2x1 pad=0_1x1_1}, dim_labels=b01f_o01i->b01f")


def test_products_that_a_gpu_s_libraries_do():
    layout = ("NHWC", "OHWI", "NHWC")
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 1), ((0, 1), (1, 1)), dimension_numbers=layout
    )
    # with ones everywhere a sum over the result counts the products
    one = 2 * int(jnp.sum(convolve(jnp.ones((2, 8, 7, 5)), jnp.ones((4, 3, 3, 5)))))
    lines = hlo.executed(GPU)
    gemm = 2 * 6 * 16 * 9
    assert hlo.flops_by_precision(lines) == {"default": 2 * one, "float32": one, "bfloat16": gemm}
    assert hlo.flops(lines) == 3 * one + gemm
    assert hlo.products(lines, looped=False)[3] == ((6, 9), (6, 16), (16, 9))


def test_bytes_that_go_through_memory_are_those_of_slices_and_of_whole_arrays():
    lines = hlo.executed(GPU)
    x, k, g, rows, bank = 4 * 2 * 8 * 7 * 5, 4 * 4 * 3 * 3 * 5, 4 * 2 * 4 * 7 * 4, 4 * 4 * 8, 4 * 100 * 8
    libraries = 3 * (x + k + g) + 9 + 2 * (6 * 16 + 16 * 9 + 6 * 9)
    read = 2 * rows + 4  # and an index
    write = 3 * rows + 4  # the rows are read, and those of the bank changed
    assert hlo.moved(lines) == libraries + read + write + bank + 4
    assert hlo.kernels(lines) == 7
    assert hlo.kernels(hlo.executed(TEXT)) == 1 + 1 + 29 * 2  # the condition is not looked at
