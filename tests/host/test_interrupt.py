"""R24: cancelled at 20 random moments of load, encode, sample and decode, the server goes on as if nothing had been."""

import threading
import time

import numpy as np
import pytest

from helpers.comfy import server as comfy_server

MOMENTS = 20
GROWTH_MIB = 150


@pytest.fixture
def tiled(shipped_workflow, picture):
    """tiled(seed, **inputs): 4 tiles x 3 steps in fp32, the loader in the graph."""

    def make(seed, **inputs):
        values = {"size.scale": 2.0, "steps": 3, "tile_px": 64, "overlap_px": 16, "seed": seed} | inputs
        prompt = shipped_workflow("teasr_quick_start", LoadImage={"image": picture}, TEASRUpscale=values)
        prompt["20"] = {"class_type": "TEASRLoadBuiltin", "inputs": {"lora_strength": 1.0, "dtype": "fp32"}}
        prompt["2"]["inputs"] |= {"model": ["20", 0], "vae": ["20", 1], "conditioning": ["20", 2]}
        return prompt

    return make


def timed(server, prompt):
    """(run, seconds in all, the longest forward, seconds before the first) of an uninterrupted run."""
    start = time.perf_counter()
    run = server.run(prompt)
    seconds = time.perf_counter() - start
    times = [at for at, _, _ in run.progress]
    return run, seconds, float(np.diff(times).max()), times[0] - start


def interrupted(server, prompt, delay):
    """(run, when /interrupt was posted) of a prompt that is cancelled `delay` seconds after it was queued.

    None cancels it after its last forward, while it is decoded.
    """
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        server.call("/interrupt", {})

    def press_at_the_end(run):
        if run.progress[-1][1] == run.progress[-1][2]:
            press()

    queued = server.queue(prompt)
    if delay is None:
        return server.follow(queued, press_at_the_end), pressed[0]
    timer = threading.Timer(delay, press)
    timer.start()
    run = server.follow(queued)
    timer.cancel()
    timer.join()
    return run, pressed[0] if pressed else None


def small(tiled, seed):
    return tiled(seed, **{"size.scale": 1.0, "steps": 1})


def test_twenty_random_moments(server, tiled):
    rng = np.random.default_rng(0)
    server.run(small(tiled, 999))
    comfy_server.forget(server)
    cold, cold_seconds, cold_forward, before_first = timed(server, tiled(1000))
    whole = server.image(cold)
    _, warm_seconds, warm_forward, _ = timed(server, tiled(1001))
    forward = max(cold_forward, warm_forward)
    # Loading and the first node's work cannot be broken off: there the next node is where it stops.
    bound = 2 * max(forward, before_first) + 1.0
    print(f"\ncold {cold_seconds:.1f} s, warm {warm_seconds:.1f} s, forward {forward:.2f} s, load {before_first:.2f} s")
    comfy_server.forget(server)
    memory, stopped, after = server.resident_mb(), [], []
    for moment in range(MOMENTS):
        is_cold = moment % 2 == 0
        if is_cold:
            comfy_server.forget(server)
        # A quarter of them while the model is loaded and the picture encoded, the rest anywhere.
        span = before_first if moment % 4 == 0 else 0.85 * (cold_seconds if is_cold else warm_seconds)
        delay = span * (moment // 2 + rng.random()) / (MOMENTS / 2) if moment < MOMENTS - 2 else None
        when = "at its end" if delay is None else f"after {delay:.2f} s"
        run, pressed = interrupted(server, tiled(2000 + moment), delay)
        assert run.error is None, run.error
        queue = server.call("/queue")
        assert (queue["queue_running"], queue["queue_pending"]) == ([], [])
        if run.interrupted is not None:
            assert pressed is not None
            latency = run.interrupted - pressed
            where = "sample" if run.progress else "before"
            print(f"{moment:2d} {when}, node {run.executed[-1]}, {where}: {latency:.2f} s")
            stopped.append(where)
            assert latency <= (2 * forward + 0.5 if run.progress else bound), (when, run.executed)
        else:
            print(f"{moment:2d} {when}: over before")
        after.append(server.image(server.run(small(tiled, moment))))
    assert len(stopped) >= MOMENTS / 2, stopped  # the others were over before
    assert set(stopped) == {"before", "sample"}
    again = server.image(server.run(tiled(1000)))
    comfy_server.forget(server)
    grown = server.resident_mb() - memory
    print(f"{len(stopped)} of {MOMENTS} stopped; resident memory {grown:+.0f} MiB")
    assert grown < GROWTH_MIB
    assert np.array_equal(again, whole)
    for moment in range(MOMENTS):  # in a server that starts cold, never interrupted since
        assert np.array_equal(server.image(server.run(small(tiled, moment))), after[moment]), moment
