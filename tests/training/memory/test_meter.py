"""Peak bytes by phase: known allocations give known report, on the CPU and by an accelerator's counters."""

import pytest
import torch

from training.memory.meter import OUTSIDE, Phase, measure_memory, no_phase

CPU = torch.device("cpu")
K = 1024


def kib(count: int) -> torch.Tensor:
    return torch.zeros(count * K, dtype=torch.uint8)


def test_each_phase_gets_the_most_that_was_alive_in_it():
    kept = []

    def work(phase: Phase) -> None:
        with phase("first"):
            kept.append(kib(100))
            kib(30)  # freed at once
        with phase("second"):
            kib(20)
        kept.append(kib(7))

    report = measure_memory(work, CPU)
    assert report.phases == {"first": 130 * K, "second": 120 * K, OUTSIDE: 107 * K}
    assert report.end == 107 * K and report.peak == 130 * K


def test_the_innermost_phase_counts_and_a_phase_may_come_again():
    def work(phase: Phase) -> None:
        with phase("outer"):
            a = kib(10)
            with phase("inner"):
                b = kib(50)
            del b
            c = kib(5)
        del a, c
        with phase("inner"):
            kib(20)

    report = measure_memory(work, CPU)
    assert report.phases["inner"] == 60 * K
    # the block of the inner phase is still there when the outer one goes on
    assert report.phases["outer"] == 60 * K
    assert report.end == 0


def test_views_count_once_and_copies_each_time():
    def work(phase: Phase) -> None:
        with phase("views"):
            a = kib(16)
            views = [a.view(16, K), a[::2], a.expand(4, -1), a.detach()]
        with phase("copies"):
            copies = [a.clone(), a[::2].contiguous()]
        del views, copies

    report = measure_memory(work, CPU)
    assert report.phases["views"] == 16 * K
    assert report.phases["copies"] == (16 + 16 + 8) * K


def test_temporaries_within_an_expression_count():
    def work(phase: Phase) -> None:
        with phase("cast"):
            kib(8).to(torch.float64).sum()  # 8 KiB, and eight times that

    assert 72 * K <= measure_memory(work, CPU).phases["cast"] <= 73 * K  # the sum itself


def test_what_autograd_keeps_is_alive_until_the_backward():
    x = torch.ones(256, requires_grad=True)  # 1 KiB

    def work(phase: Phase) -> None:
        with phase("forward"):
            y = x
            for _ in range(8):
                y = y.exp()  # each keeps its result
        with phase("between"):
            kib(1)
        with phase("backward"):
            y.backward(torch.ones_like(y))

    report = measure_memory(work, CPU)
    assert report.phases["forward"] == 8 * K and report.phases["between"] == 9 * K
    assert 10 * K <= report.phases["backward"] <= 12 * K
    assert report.end == K  # x.grad


def test_freeing_what_was_there_before_the_start_does_not_count():
    before = [kib(64)]

    def work(phase: Phase) -> None:
        with phase("free"):
            before.clear()
            kib(3)

    report = measure_memory(work, CPU)
    assert report.phases["free"] == 3 * K and report.end == 0


def test_the_figures_repeat_exactly():
    def work(phase: Phase) -> None:
        with phase("work"):
            (torch.rand(64, 64) @ torch.rand(64, 64)).softmax(0)

    assert measure_memory(work, CPU) == measure_memory(work, CPU)


def test_errors_of_the_work_come_through():
    def work(phase: Phase) -> None:
        with phase("broken"):
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        measure_memory(work, CPU)
    with no_phase("any"):
        pass


class Counters:
    """An accelerator's counters as torch documents them, driven by hand."""

    def __init__(self, now: int) -> None:
        self.now = self.top = now

    def take(self, size: int) -> None:
        self.now += size
        self.top = max(self.top, self.now)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def reset(_device: object) -> None:
            self.top = self.now

        monkeypatch.setattr(torch.accelerator, "synchronize", lambda _device: None)
        monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda _device: self.now)
        monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda _device: self.top)
        monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", reset)


def test_an_accelerators_counters_are_split_by_phase(monkeypatch):
    counters = Counters(now=1000)
    counters.install(monkeypatch)

    def work(phase: Phase) -> None:
        counters.take(1)
        with phase("outer"):
            counters.take(50)
            counters.take(-40)
            with phase("inner"):
                counters.take(20)
                counters.take(-20)
            counters.take(5)
        with phase("inner"):
            counters.take(100)
            counters.take(-90)

    report = measure_memory(work, torch.device("cuda"))
    assert report.phases == {OUTSIDE: 26, "outer": 51, "inner": 116}
    assert report.end == 26 and report.peak == 116
