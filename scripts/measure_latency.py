"""Times the contractions of a model on this machine, in every format it executes.

Run: python scripts/measure_latency.py --out=latency.csv --model=resnet20 \
         --image_size=32 --batch_size=32

For `--cost=latency --latency_table=latency.csv` of the launchers. Formats alternate
within a round, and medians over rounds are kept. Rows are written as they come: run
again after an interruption, or with another model, and what the file has is skipped. A
format that the backend refuses gets a row with the reason. A number is the time of one
call, what it costs to dispatch it included; that of an empty call is printed.
"""

import argparse
import collections
import pathlib
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from experiments import parsing
from fliqs_jax.costs.contractions import (
    OPERANDS,
    CompiledContraction,
    ContractionProgram,
    NotExecuted,
    find_contractions,
)
from fliqs_jax.costs.latency_table import (
    Contraction,
    LatencyTable,
    Measurement,
    shape_text,
)
from fliqs_jax.models import create_model
from fliqs_jax.train.classifier import training_arguments

SAMPLE_S = 5e-3  # a sample repeats its call until it takes about as long
MOST_CALLS = 200
LARGER = 1.05  # times fp32's latency from which a format is called slower


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", required=True, help="CSV file, new or to be continued")
    add("--model", default="resnet20", help="a model's name or package.module:factory")
    add("--model_options", default="", help="fields of the model: width=8,...")
    add("--image_size", type=int, default=32, help="side of the images in pixels")
    add("--channels", type=int, default=3, help="of the images")
    add("--num_classes", type=int, default=10)
    add("--batch_size", type=int, default=32, help="examples computed at once")
    add("--formats", default=",".join(OPERANDS), help="formats to try")
    add("--rounds", type=int, default=15, help="samples of each latency")
    add("--device", help="its name in the file (default: what jax and the system say)")
    arguments = parser.parse_args()
    for name in ("image_size", "channels", "batch_size", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    arguments.formats = arguments.formats.split(",")
    unknown = [name for name in arguments.formats if name not in OPERANDS]
    if unknown:
        parser.error(
            f"--formats: no {', '.join(unknown)}; known: {', '.join(OPERANDS)}"
        )
    return arguments


def device_name() -> str:
    """Returns what jax calls the device; for a CPU, what the system calls it."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    model = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, jax {jax.__version__}"


def make_model(arguments: argparse.Namespace):
    """Returns the model that --model names."""
    given = [pair for pair in arguments.model_options.split(",") if pair]
    options = parsing.parse_pairs("model_options", given)
    options["num_classes"] = arguments.num_classes
    if ":" in arguments.model:
        return parsing.user_model(arguments.model, **options)
    return create_model(arguments.model, **options)


def open_table(path: str, device: str) -> LatencyTable:
    """Returns the table to continue, or an empty one."""
    if not pathlib.Path(path).exists():
        return LatencyTable(device, (), path)
    table = LatencyTable.load(path)
    if table.device != device:
        raise ValueError(
            f"{path} has latencies of {table.device!r}, this is {device!r}: give"
            " another --out, or that --device if it is the same"
        )
    return table


def measure(
    program: ContractionProgram, formats: list[str], *, batch_size: int, rounds: int
) -> list[Measurement]:
    """Returns a row for each format, times taken in alternating rounds."""
    compiled: dict[str, CompiledContraction] = {}
    refused: dict[str, str] = {}
    for name in formats:
        try:
            compiled[name] = program.compile(name)
        except NotExecuted as error:
            refused[name] = f"not executed: {' '.join(str(error).split())[:160]}"
    calls = {name: _calls(item) for name, item in compiled.items()}  # warms up too
    samples: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(rounds):
        for name, item in compiled.items():
            samples[name].append(_sample(item, calls[name]))
    return [
        Measurement(
            contraction=program.contraction,
            batch_size=batch_size,
            weights=name,
            activations=name,
            remark=refused.get(name, ""),
            latency_s=statistics.median(times) if times else None,
            spread=_spread(times),
            repetitions=len(times) * calls.get(name, 0),
            executed_as=compiled[name].executed_as if times else "",
        )
        for name, times in samples.items()
    ]


def _spread(times: list[float]) -> float:
    """Returns the interquartile range over the median; 0 for a single time."""
    if len(times) < 2:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / median


def _sample(item: CompiledContraction, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        item.run()
    return (time.perf_counter() - start) / calls


def _calls(item: CompiledContraction) -> int:
    """Returns how many calls make a sample long enough to be timed."""
    once = min(_sample(item, 1) for _ in range(3))
    return max(1, min(MOST_CALLS, round(SAMPLE_S / once)))


def empty_call_s(rounds: int) -> float:
    """Returns the time of a compiled call that computes nothing."""
    first = jnp.zeros((1, 1))
    program = jax.jit(lambda first, second: first).lower(first, first).compile()
    item = CompiledContraction(program=program, operands=(first, first), executed_as="")
    return statistics.median(_sample(item, MOST_CALLS) for _ in range(rounds))


def print_findings(
    programs: tuple[ContractionProgram, ...], table: LatencyTable, batch_size: int
) -> None:
    """Prints each contraction's latencies relative to fp32, and which are slower."""
    found: dict[str, dict[Contraction, Measurement]] = {name: {} for name in OPERANDS}
    sites = {program.contraction: program.site_paths[0] for program in programs}
    for row in table.rows:
        same = row.weights == row.activations and row.batch_size == batch_size
        if same and row.contraction in sites and row.weights in found:
            found[row.weights][row.contraction] = row
    float32 = {what: row for what, row in found.pop("fp32").items() if row.latency_s}
    verdicts = {
        name: {
            what: _verdict(row, float32[what])
            for what, row in rows.items()
            if row.latency_s and what in float32
        }
        for name, rows in found.items()
    }
    shown = [name for name in verdicts if verdicts[name]]
    print(f"\nlatency / that of fp32, batch {batch_size}")
    print("! slower   ? slower, but their interquartile ranges overlap")
    print(f"{'site, weights':24} {'fp32, ms':>9}" + "".join(f"{x:>7} " for x in shown))
    for what, row in float32.items():
        label = f"{sites[what]} {shape_text(what.weight_shape)}"
        line = f"{label[-24:]:24} {1e3 * row.latency_s:9.3f}"
        for name in shown:
            ratio, mark = verdicts[name].get(what, (None, " "))
            line += f"{'-' if ratio is None else f'{ratio:.2f}':>7}{mark}"
        print(line)
    for name, rows in found.items():
        refused = [row.remark for row in rows.values() if row.latency_s is None]
        if refused:
            print(f"{name}: {len(refused)} of {len(rows)} {refused[0]}"[:79])
        if name in shown:
            marks = collections.Counter(mark for _, mark in verdicts[name].values())
            types = collections.Counter(
                row.executed_as or "unknown" for row in rows.values() if row.latency_s
            )
            computed = ", ".join(f"{kind} ({n})" for kind, n in types.most_common())
            verdict = "SLOWER" if marks["!"] else "slower"
            perhaps = f", perhaps {marks['?']} more" if marks["?"] else ""
            print(
                f"{name}: {verdict} than fp32 in {marks['!']} of {marks.total()}"
                f"{perhaps}; computed in {computed}"
            )


def _verdict(row: Measurement, float32: Measurement) -> tuple[float, str]:
    """Returns the ratio of the latencies, and its mark in the table."""
    ratio = row.latency_s / float32.latency_s
    noise = 0.5 * (ratio * row.spread + float32.spread)
    if ratio <= LARGER:
        return ratio, " "
    return ratio, "!" if ratio > 1.0 + noise else "?"


def main() -> None:
    arguments = parse_arguments()
    model = make_model(arguments)
    side, batch_size = arguments.image_size, arguments.batch_size
    images = jax.ShapeDtypeStruct(
        (batch_size, side, side, arguments.channels), jnp.float32
    )
    programs, left_out = find_contractions(
        model, images, **training_arguments(model, train=False)
    )
    for path, reason in left_out.items():
        print(f"left out: site {path!r} has {reason}")
    device = arguments.device or device_name()
    table = open_table(arguments.out, device)
    print(f"{len(programs)} different contractions of {arguments.model} on {device}")
    known = {row.key for row in table.rows}
    for number, program in enumerate(programs, start=1):
        missing = [
            name
            for name in arguments.formats
            if (program.contraction, batch_size, name, name) not in known
        ]
        label = f"[{number}/{len(programs)}] {program.contraction}"
        print(f"{label}: {', '.join(missing) or 'known'}", flush=True)
        if missing:
            rows = measure(
                program, missing, batch_size=batch_size, rounds=arguments.rounds
            )
            table = table.extended(rows)
            table.save(arguments.out)
    print_findings(programs, table, batch_size)
    empty = empty_call_s(arguments.rounds)
    print(f"an empty call takes {1e3 * empty:.3f} ms: that much of each is dispatch")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
