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
