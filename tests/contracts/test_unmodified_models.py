"""What holds for every model nobody wrote for us: a row a model, a test a promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from public_cases import PUBLIC
from small_models import SMALL
from unmodified import (
    Run,
    exact_jit,
    flat_kernels,
    inputs_by_path,
    site_of,
    unrolled_params,
)

from fliqs_jax.quantized_model import QuantizedModel
from fliqs_jax.sites import find_sites

CASES = SMALL | PUBLIC
# One of each kind that once broke, and the small ones, in every run of the tests.
SLOW = {"scan, axis 1", "scan with its products"}
QUICK = {*SMALL, "optimized lstm"} - SLOW


def rows(cases):
    """Parameters of a fixture: the other rows are slow."""
    return [
        pytest.param(case, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name, case in cases.items()
    ]


@pytest.fixture(scope="module", params=rows(CASES))
def run(request):
    return Run(request.param)


def test_sites_have_the_counted_macs(run):
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in run.inputs]
    sites = find_sites(
        run.case.model,
        *shapes,
        attention_products=run.case.attention_products,
        **run.case.kwargs,
    )
    assert {site.path: site.macs for site in sites} == run.case.macs
    assert [site.path for site in sites] == list(run.case.macs)
    kernels = flat_kernels(run.variables["params"]).values()
    assert sum(site.weight_count for site in sites) == sum(w.size for w in kernels)


def test_init_is_the_models_own(run):
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    # The same program, so the same values: nothing needs to run.
    programs = [
        str(
            jax.make_jaxpr(lambda r, *x, init=init: init(r, *x, **run.case.kwargs))(
                rngs, *run.inputs
            )
        )
        for init in (run.quantized.init, run.case.model.init)
    ]
    assert programs[0] == programs[1]


def test_fp32_policy_changes_no_bit(run):
    assert (run.forward(run.uniform("fp32")) == run.plain).all()


def test_int8_is_close_and_int3_is_not(run):
    scale = jnp.abs(run.plain).max()
    error = jnp.abs(run.forward(run.uniform("int8")) - run.plain).max() / scale
    assert 0 < error < run.case.int8_error
    coarse = jnp.abs(run.forward(run.uniform("int3")) - run.plain).max() / scale
    assert coarse > 2 * error


def test_one_trace_serves_all_formats(run):
    run.forward(run.mixed("int4"))
    before = run.traces
    outputs = [
        run.forward(run.mixed(*names))
        for names in (["int5"], ["e4m3", "int8"], ["fp32", "int5", "bf16"])
    ]
    assert run.traces == before
    assert not (outputs[0] == outputs[1]).all()


def test_jit_equals_eager(run):
    if run.case not in (CASES["shared"], CASES["scan of remat"]):
        pytest.skip("slow without jit, and has nothing that those two have not")
    formats = run.mixed("int4", "e4m3", "bf16")
    np.testing.assert_allclose(
        run.forward(formats), run.eager(formats), rtol=1e-5, atol=1e-6
    )


def test_gradient_reaches_every_weight(run):
    formats = run.mixed("int6", "e4m3", "bf16")

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: jnp.square(run.apply(formats, p, run.inputs)).sum())(
            params
        )

    own = run.variables["params"]
    gradients = gradient(own)
    assert jax.tree.structure(gradients) == jax.tree.structure(own)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for path, leaf in flat_kernels(gradients).items():
        assert (leaf != 0).any(), path


def test_observed_inputs_are_those_of_the_sites(run):
    @exact_jit
    def observe(variables):
        return run.quantized.observe(
            variables, *run.inputs, num_samples=64, **run.arguments
        )

    seen = observe(run.variables)
    assert seen.samples.shape == (len(run.sites), 64)
    inputs = inputs_by_path(run)
    for i, site in enumerate(run.sites):
        if site.product:
            continue  # tests/test_attention_products.py has the operands by hand
        values = inputs[site.path]
        every = np.concatenate([value.ravel() for value in values])
        assert seen.absmax[i] == pytest.approx(np.abs(every).max(), rel=1e-5)
        assert seen.minimum[i] == pytest.approx(every.min(), rel=1e-5, abs=1e-7)
        mean = np.mean([np.square(value).mean() for value in values])
        assert seen.mean_square[i] == pytest.approx(mean, rel=1e-4)
        if site.calls == 1:
            distance = np.abs(seen.samples[i][:, None] - every[None, :]).min(1)
            assert distance.max() < 1e-5  # every sample is an element of the input


SCANNED = {name: case for name, case in CASES.items() if case.stacks}


@pytest.fixture(scope="module", params=rows(SCANNED))
def stack(request):
    return Run(request.param)


@pytest.mark.parametrize(("per_channel", "clips"), [(False, False), (True, True)])
def test_formats_per_layer_under_scan_equal_the_unrolled_model(
    stack, per_channel, clips
):
    formats = stack.mixed("int4", "int8", "e2m1", "int3", "fp32")
    if clips:
        count = len(stack.sites)
        formats = formats.replace(
            weight_clip=jnp.linspace(1.0, 3.0, count),
            activation_clip=jnp.linspace(0.5, 2.0, count),
        )
    quantized, unrolled = (
        QuantizedModel(
            model,
            attention_products=stack.case.attention_products,
            per_channel=per_channel,
        )
        for model in (stack.case.model, stack.case.unrolled)
    )
    paths = [site.path for site in stack.sites]
    layers = [site_of(s.path, stack.case) for s in unrolled.sites(*stack.inputs)]
    order = [paths.index(path) for path in layers]
    reordered = jax.tree.map(lambda leaf: leaf[np.array(order)], formats)
    params = {"params": unrolled_params(stack)}
    x = stack.inputs
    got = jax.jit(lambda: quantized.apply(stack.variables, *x, policy=formats))()
    want = jax.jit(lambda: unrolled.apply(params, *x, policy=reordered))()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
