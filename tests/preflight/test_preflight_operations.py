"""FLOPs and bytes of an operation are those of its arrays, without padding and without what is only sliced."""

import pytest

from chinchilla_jax.preflight.program.program import read_program
from tests.preflight.hlo_texts import SHAPE, module


@pytest.mark.parametrize(("product", "flops"), [
    ("f32[8,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 8 * 16 * 32),
    ("f32[8,32]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
    # A batch of 4 products of [8, 16] and [16, 32], the batch as a spatial axis: only its diagonal is multiplied.
    ("f32[4,8,32]{2,1,0} convolution(%c, %d), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
     2 * 4 * 8 * 16 * 32),
    # A window of 3 over 4 places with padding: 2 of the 12 places are padding.
    ("f32[4,8,32]{2,1,0} convolution(%c, %e), window={size=3 pad=1_1}, dim_labels=0bf_0io->0bf", 2 * 10 * 8 * 16 * 32),
])  # fmt: skip
def test_products_are_counted_within_fusions_and_without_padding(product, flops):
    operands = """%a = f32[8,16]{1,0} parameter(0)
                  %b = f32[16,32]{1,0} parameter(1)
                  %c = f32[4,8,16]{2,1,0} parameter(2)
                  %d = f32[4,16,32]{2,1,0} parameter(3)
                  %e = f32[3,16,32]{2,1,0} parameter(4)"""
    entry = f"{operands}\n%x = {product}\n%y = {product.split(' ')[0]} fusion(%a, %b, %c, %d, %e), calls=%fused"
    text = module(entry, ("fused", f"{operands}\n%x = {product}"))
    assert read_program(text, SHAPE).matmul_flops == 2 * flops


def moved(entry, *computations):
    return read_program(module(entry, *computations), SHAPE).hbm_bytes


def test_bytes_moved_are_those_of_hbm_and_of_slices():
    p = "%p = f32[4,256]{1,0} parameter(0)\n%i = s32[] constant(0)\n"
    v = "%v = f32[1,256]{1,0:T(8,128)S(1)} parameter(1)\n"
    assert moved(p + "%c = f32[4,256]{1,0} copy(%p)") == 2 * 4096
    assert moved(p + "%c = f32[4,256]{1,0:S(1)} copy(%p)") == 4096, "VMEM is not counted"
    assert moved(p + "%b = f32[1024]{0} bitcast(%p)\n%t = (f32[1024]{0}) tuple(%b)") == 0
    assert moved(p + v + "%u = f32[4,256]{1,0} dynamic-update-slice(%p, %v, %i, %i)") == 1024 + 8
    assert moved(p + "%s = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}") == 2 * 1024 + 8
    started = """%s = (f32[4,256]{1,0:S(1)}, f32[4,256]{1,0}, u32[]{:S(2)}) copy-start(%p)
                 %d = f32[4,256]{1,0:S(1)} copy-done(%s)"""
    assert moved(p + started) == 4096
    inner = """%a = f32[4,256]{1,0} parameter(0)
               %b = f32[1,256]{1,0} parameter(1)
               %j = s32[] constant(2)
               %u = f32[4,256]{1,0} dynamic-update-slice(%a, %b, %j, %j)"""
    update = p + v + "%f = f32[4,256]{1,0} fusion(%p, %v), kind=kLoop, calls=%inner"
    assert moved(update, ("inner", inner)) == 1024, "the slice is written, and read from VMEM"
    fresh = inner.replace("dynamic-update-slice(%a,", "dynamic-update-slice(%z,").replace(
        "%j =", "%z = f32[4,256]{1,0} broadcast(%b), dimensions={}\n%j ="
    )
    assert moved(update, ("inner", fresh)) == 4096, "what is updated is not in memory yet: it is written whole"
    read = """%a = f32[4,256]{1,0} parameter(0)
              %j = s32[] constant(2)
              %s = f32[1,256]{1,0} dynamic-slice(%a, %j, %j), dynamic_slice_sizes={1,256}
              %n = f32[1,256]{1,0:S(1)} negate(%s)"""
    assert moved(p + "%f = f32[1,256]{1,0:S(1)} fusion(%p), kind=kLoop, calls=%inner", ("inner", read)) == 1024
