"""Starting several processes on the loopback address, as --distributed takes them."""

import os
import socket
import subprocess
import sys


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, *, processes, devices, cache):
    """Starts `python ARGUMENTS` so many times, each with so many simulated devices.

    Where there are several they get the flags of --distributed. `cache` is a folder for
    compiled programs: a restart need not compile them again.
    """
    port = free_port()
    started = []
    for index in range(processes):
        joining = [
            "--distributed",
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={index}",
        ]
        started.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-u", *arguments),
                    *(joining if processes > 1 else []),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "JAX_NUM_CPU_DEVICES": str(devices),
                    "JAX_COMPILATION_CACHE_DIR": str(cache),
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                },
            )
        )
    return started


def outputs(started, *, timeout):
    """Returns what each process printed, once all have ended."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()


def run(arguments, *, processes, devices, cache, timeout=600):
    """Runs them to their end, which must be a good one; returns what each printed."""
    started = start(arguments, processes=processes, devices=devices, cache=cache)
    texts = outputs(started, timeout=timeout)
    for process, text in zip(started, texts, strict=True):
        assert process.returncode == 0, text
    return texts
