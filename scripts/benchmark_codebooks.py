"""Times C steps on as many weights as a large layer has, against scikit-learn's KMeans.

  python scripts/benchmark_codebooks.py [--weights=1000000] [--sizes=2,16,64]

Normal weights. The sides take turns, medians after a warm-up: `kmeans_exact` (on the
host), `kmeans` from the values of the C step before, as in a Learning-Compression run,
and scikit-learn's KMeans of ten starts. Prints seconds, and squared errors
relative to the exact optimum's.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from fliqs_jax.quantizers.codebook import kmeans, kmeans_exact


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="2,16,64", help="K, each")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    weights = random.normal(size=options.weights).astype(np.float32)
    moved = weights + 0.05 * random.normal(size=weights.shape).astype(np.float32)
    print(f"{options.weights} weights, seconds (squared error over the exact one's)")
    for size in map(int, options.sizes.split(",")):
        best = kmeans_exact(weights, size)
        start = jnp.asarray(kmeans_exact(moved, size).values)
        rivals = {
            "kmeans_exact": lambda size=size: decoded(kmeans_exact(weights, size)),
            "kmeans": lambda size=size, start=start: decoded(
                jax.block_until_ready(kmeans(weights, size, init=start))
            ),
            "scikit-learn": lambda size=size: clustered(weights, size),
        }
        error = squared_error(weights, np.asarray(best.decode()))
        times, errors = measure(rivals, weights, options.repeats)
        shown = (
            f"{name} {statistics.median(times[name]):.3f} ({errors[name] / error:.6f})"
            for name in rivals
        )
        print(f"K = {size}: {', '.join(shown)}", flush=True)


def measure(rivals, weights, repeats):
    """Seconds of each rival's repeats, and its largest squared error."""
    times, errors = {name: [] for name in rivals}, dict.fromkeys(rivals, 0.0)
    for repeat in range(repeats + 1):
        for name, run in rivals.items():
            begin = time.perf_counter()
            found = run()
            if repeat:
                times[name].append(time.perf_counter() - begin)
            errors[name] = max(errors[name], squared_error(weights, np.asarray(found)))
    return times, errors


def decoded(codebook):
    return codebook.decode()


def clustered(weights, size):
    found = KMeans(size, n_init=10, random_state=0).fit(weights[:, None])
    return found.cluster_centers_[found.labels_, 0]


def squared_error(weights, decoded) -> float:
    return float(np.sum((weights.astype(np.float64) - decoded) ** 2))


if __name__ == "__main__":
    main()
