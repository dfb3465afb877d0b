"""Time spent compiling counts once, in the thread that spends it."""

import threading

import jax
import jax.numpy as jnp

from chinchilla_jax.training.timing.compile_time import Spans, compile_seconds


def test_nested_spans_count_once():
    spans, trace = Spans(), "/jax/core/compile/jaxpr_trace_duration"
    spans.add(trace, 1.0, 2.0)
    spans.add(trace, 4.0, 5.0)
    spans.add(trace, 5.5, 6.0)
    spans.add(trace, 3.0, 7.0)
    spans.add("/jax/core/compile/backend_compile_duration", 7.0, 10.0)
    spans.add("/jax/something/else", 10.0, 99.0)
    assert spans.seconds() == 1 + 4 + 3


def test_only_the_calls_that_compile_count_and_only_in_their_thread():
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    before = compile_seconds()
    double(x).block_until_ready()
    after = compile_seconds()
    double(x).block_until_ready()
    assert after > before and compile_seconds() == after
    elsewhere = []

    def other():
        jax.jit(lambda x: 3 * x)(x).block_until_ready()
        elsewhere.append(compile_seconds())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert elsewhere[0] > 0 and compile_seconds() == after
