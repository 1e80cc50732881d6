"""Times fake_quantize against x + 1 on 16 M float32 values, for several formats.

Run: python scripts/benchmark_fake_quantize.py   (half a minute on 2 cores)

Prints, for each format, the throughput of `fake_quantize` over that of `x + 1`: with a
given scale, where one pass over memory is the bound (aim: at least 0.9), and with the
dynamic absmax scale, which needs a second pass. Calls alternate and medians are
compared, because timings drift within minutes. Then the number of compilations over 40
formats (aim: 1).
"""

import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from fliqs_jax.formats import parse_format, stack_formats
from fliqs_jax.quantizers import fake_quantize

SIZE = 2**24
ROUNDS = 21
FORMATS = ("int4", "int8", "e4m3", "e2m1", "bf16")
FORTY_FORMATS = (
    *(f"int{bits}" for bits in range(2, 17)),
    *(f"uint{bits}" for bits in range(2, 9)),
    *(f"e{x}m{y}" for x in range(1, 6) for y in range(1, 4)),
    *("bf16", "fp16", "fp32"),
)


def timed(function, *args) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    return time.perf_counter() - start


def main() -> None:
    x = jax.random.normal(jax.random.key(0), (SIZE,))
    add_one = jax.jit(lambda x: x + 1.0)
    given = jax.jit(lambda x, fmt, scale: fake_quantize(x, fmt, scale=scale))
    dynamic = jax.jit(fake_quantize)
    scale = jnp.float32(1.0)
    formats = {name: jax.tree.map(jnp.asarray, parse_format(name)) for name in FORMATS}
    jax.block_until_ready((add_one(x), given(x, formats["int4"], scale)))
    jax.block_until_ready(dynamic(x, formats["int4"]))

    print(f"{SIZE / 1e6:.0f} M float32, medians of {ROUNDS} alternating calls")
    print("throughput relative to x + 1    given scale    absmax scale    x + 1 [ms]")
    for name, fmt in formats.items():
        times = [
            (timed(add_one, x), timed(given, x, fmt, scale), timed(dynamic, x, fmt))
            for _ in range(ROUNDS)
        ]
        one, with_scale, with_absmax = map(statistics.median, zip(*times, strict=True))
        print(
            f"{name:>28}    {one / with_scale:11.2f}    {one / with_absmax:12.2f}"
            f"    {1e3 * one:10.1f}"
        )

    traces = 0

    @jax.jit
    def counted(x, fmt):
        nonlocal traces
        traces += 1
        return fake_quantize(x, fmt)

    stacked = stack_formats(FORTY_FORMATS)
    for index in range(len(stacked)):
        counted(x[:1024], stacked[index])
    print(f"compilations over {len(stacked)} formats: {traces}")


if __name__ == "__main__":
    main()
