"""Out of memory: smaller pieces, nothing finished is lost, and a sentence when nothing is left to try."""

import errno

import pytest
import torch

from teasr_core.errors import InputError
from teasr_core.memory import is_out_of_memory, refuse_out_of_memory
from teasr_core.sampling.smaller_pieces import PieceLimit, SteppingDown
from teasr_core.sampling.tiled_velocity import TiledVelocity
from teasr_core.tiling import plan_tiles

ONE, ZERO = torch.ones(1), torch.zeros(1)


class Card:
    """A velocity that is local (every pixel on its own) and holds `area` latent pixels at most."""

    def __init__(self, area, error=torch.OutOfMemoryError):
        self.area, self.error = area, error
        self.calls = []

    def __call__(self, z_t, t_cur, z_lq, t_tar):
        self.calls.append(tuple(z_t.shape[-2:]))
        if z_t.shape[-1] * z_t.shape[-2] > self.area:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 2 * z_t - z_lq

    def run(self, velocity, side=64):
        z_t, z_lq = torch.randn(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
        return velocity(z_t, ONE, z_lq, ZERO), 2 * z_t - z_lq


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_tile_that_does_not_fit_comes_in_pieces_that_do(error):
    card, sides, released = Card(20 * 20, error), [], []
    stepping = SteppingDown(card, 4, lambda: released.append(None), sides.append)
    found, expected = card.run(stepping)
    assert torch.allclose(found, expected, atol=1e-6)
    assert sides == [32, 16] and len(released) == 2
    assert card.calls[:2] == [(64, 64), (32, 32)]


def test_what_did_not_fit_once_is_not_tried_again():
    card = Card(20 * 20)
    stepping = SteppingDown(card, 4, release=lambda: None)
    card.run(stepping)
    first = len(card.calls)
    card.run(stepping)
    assert set(card.calls[first:]) == {(16, 16)}


def test_a_limit_goes_from_one_velocity_to_the_next():
    limit, card = PieceLimit(), Card(20 * 20)
    card.run(SteppingDown(Card(20 * 20), 4, release=lambda: None, limit=limit))
    card.run(SteppingDown(card, 4, release=lambda: None, limit=limit))
    assert limit.largest == 16 and set(card.calls) == {(16, 16)}


def test_the_host_may_say_what_out_of_memory_is():
    class FullError(ValueError):
        pass

    card = Card(20 * 20, FullError)
    found, expected = card.run(
        SteppingDown(card, 4, release=lambda: None, is_out_of_memory=lambda error: isinstance(error, FullError))
    )
    assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(FullError):
        Card(0).run(SteppingDown(Card(0, FullError), 4, release=lambda: None))


def test_finished_tiles_are_kept():
    """Memory is taken away after the second of four tiles: the first two are not computed again."""

    class Shrinking(Card):
        def __call__(self, *arguments):
            if len(self.calls) == 2:
                self.area = 20 * 20
            return super().__call__(*arguments)

    card = Shrinking(64 * 64)
    plan = plan_tiles(64, 64, 32, 0, 4)
    found, expected = card.run(TiledVelocity(SteppingDown(card, 4, release=lambda: None), plan))
    assert torch.allclose(found, expected, atol=1e-6)
    assert card.calls.count((32, 32)) == 3  # two that went well and the one that failed


def test_nothing_small_enough_is_one_sentence():
    with pytest.raises(InputError, match=r"even for a piece of 4 latent pixels: close other programs"):
        Card(0).run(SteppingDown(Card(0), 4, release=lambda: None))


def test_other_errors_pass():
    class Broken(Card):
        def __call__(self, *arguments):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Card(0).run(SteppingDown(Broken(0), 4))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_pillow_and_the_system_say_it_in_their_own_ways():
    assert is_out_of_memory(OSError("out of memory error when reading image file"))
    assert is_out_of_memory(RuntimeError("unable to mmap 158776432 bytes from file <a>: Cannot allocate memory (12)"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory", "a.png"))
    assert not is_out_of_memory(OSError(errno.ENOENT, "No such file or directory", "out of memory.png"))
    for error, seen, text in (
        (MemoryError(), InputError, "to read a: close others"),
        (OSError("disk"), OSError, "disk"),
    ):
        with pytest.raises(seen, match=text), refuse_out_of_memory("to read a", "close others"):
            raise error


def test_the_failed_calls_tensors_are_gone_before_the_next_try():
    """`release` runs when the exception and its frames are dead: on a card their tensors are what filled it."""
    import gc
    import weakref

    alive, seen = [], []

    class Leaking(Card):
        def __call__(self, z_t, *arguments):
            scratch = torch.zeros(z_t.shape)
            alive.append(weakref.ref(scratch))
            return super().__call__(z_t, *arguments)

    gc.disable()  # frames must die by themselves, not by luck of the collector
    try:
        card = Leaking(40 * 40)
        stepping = SteppingDown(card, 4, lambda: seen.append([one() is not None for one in alive]))
        card.run(stepping)
    finally:
        gc.enable()
    assert seen == [[False]]
