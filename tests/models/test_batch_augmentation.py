import numpy as np
import pytest
import torch

from models import batch_augmentation as augmentation
from models.batch_augmentation import (SpecAugment, blend, change_windows, equalise, low_pass, mask_windows,
                                       mix_background, mixup, shift_time)
from models.efficientnet_config import AugmentationConfig

FLOAT32_RTOL = 1e-5  # a few roundings of float32 (6e-8 each) over a sum
ATOL_DB = 1e-3  # float32 rounding of powers, and of levels around 100 dB
TOP_DB = 80.0
MASKS = {"freq_mask_param": 12, "time_mask_param": 12, "n_freq_masks": 2, "n_time_masks": 2}


def generators(n, *, seed=5):
    return [np.random.default_rng([seed, number]) for number in range(n)]


def ramp(*shape):
    return torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)


def windows(rng, n, *, n_mels=24, n_frames=10):
    """Log-mels as the front end makes them: the lowest cells lie at the floor."""
    log_mels = (-50 + 30 * rng.standard_normal((n, 1, n_mels, n_frames))).clip(-100).astype(np.float32)
    return torch.from_numpy(np.maximum(log_mels, log_mels.max(axis=(1, 2, 3), keepdims=True) - np.float32(TOP_DB)))


def powers(log_mels):
    return 10 ** (log_mels.double() / 10)


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(augmentation, "APPLY_PROBABILITY", 1.0)


# what changes a window alone

EVERYTHING = AugmentationConfig(use_equaliser=True, use_low_pass=True, freq_mask_param=5, time_mask_param=5)


def test_a_window_becomes_the_same_alone_and_in_any_batch(rng):
    log_mels = windows(rng, 6, n_mels=128, n_frames=345)

    def changed(places):
        rngs = [np.random.default_rng([1, place]) for place in places]
        return mask_windows(change_windows(log_mels[places], EVERYTHING, top_db=TOP_DB, rngs=rngs), EVERYTHING,
                            rngs=rngs)

    together = changed([0, 1, 2, 3, 4, 5])
    assert torch.equal(changed([4, 1]), together[[4, 1]])
    assert all(torch.equal(changed([place])[0], together[place]) for place in range(6))
    assert not any(torch.equal(window, original) for window, original in zip(together, log_mels))


@pytest.mark.parametrize("change", [
    lambda x: shift_time(x, rngs=generators(len(x))),
    lambda x: SpecAugment(**MASKS)(x, rngs=generators(len(x))),
    lambda x: equalise(x, gain_db_range=(-9, 9), top_db=TOP_DB, rngs=generators(len(x))),
    lambda x: low_pass(x, share_range=(0.3, 0.6), top_db=TOP_DB, rngs=generators(len(x))),
    lambda x: mixup(x, torch.eye(len(x)), alpha=1.0, rng=np.random.default_rng(0))[0],
    lambda x: mix_background(x, np.arange(len(x)) < 2, snr_db_range=(5, 20), rng=np.random.default_rng(0)),
], ids=["shift", "masks", "equaliser", "low_pass", "mixup", "background"])
def test_a_change_keeps_shape_dtype_and_its_input(rng, change):
    log_mels = windows(rng, 8)
    before = log_mels.clone()
    changed = change(log_mels)
    assert changed.shape == log_mels.shape and changed.dtype == torch.float32 and changed.isfinite().all()
    assert not torch.equal(changed, log_mels)
    assert torch.equal(log_mels, before)


def test_a_shift_rotates_each_window_by_its_own_draw():
    log_mels = ramp(3, 1, 2, 7)
    shifted = shift_time(log_mels, rngs=generators(3))
    expected = [int(rng.integers(7)) for rng in generators(3)]
    assert len(set(expected)) > 1
    for window, original, n_frames in zip(shifted, log_mels, expected, strict=True):
        assert torch.equal(window, torch.roll(original, n_frames, dims=-1))


def hidden_cells(masked, original):
    """Return where a spectrogram without a cell equal to its mean was masked."""
    return (masked != original).numpy()


def test_masks_hide_whole_rows_and_columns_no_more_than_allowed():
    log_mels, rngs = ramp(100, 32, 50), generators(100)
    freq_only = SpecAugment(freq_mask_param=5, time_mask_param=9, n_freq_masks=2, n_time_masks=0)
    time_only = SpecAugment(freq_mask_param=5, time_mask_param=9, n_freq_masks=0, n_time_masks=3)
    rows = hidden_cells(freq_only(log_mels, rngs=rngs), log_mels)
    columns = hidden_cells(time_only(log_mels, rngs=rngs), log_mels)
    assert (rows == rows[:, :, :1]).all() and (columns == columns[:, :1]).all()
    # a mask is narrower than its parameter; several masks are wider than one can be
    assert 5 <= rows[:, :, 0].sum(axis=1).max() <= 2 * 4
    assert 9 <= columns[:, 0].sum(axis=1).max() <= 3 * 8


def test_masks_are_filled_with_the_mean_of_each_window_and_leave_the_rest():
    log_mels = torch.stack([ramp(20, 30), -3 * ramp(20, 30)])[:, None]
    masked = SpecAugment(**MASKS)(log_mels, rngs=generators(2))
    hidden = hidden_cells(masked, log_mels)
    assert 0 < hidden[0].mean() < 1 and 0 < hidden[1].mean() < 1 and (hidden[0] != hidden[1]).any()
    assert masked[0][hidden[0]].numpy() == pytest.approx(299.5, rel=FLOAT32_RTOL)  # mean of 0..599
    assert masked[1][hidden[1]].numpy() == pytest.approx(-898.5, rel=FLOAT32_RTOL)


def test_masks_depend_on_their_generators_alone():
    log_mels = ramp(1, 40, 60)
    state = torch.get_rng_state()
    first = SpecAugment(**MASKS)(log_mels, rngs=generators(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(SpecAugment(**MASKS)(log_mels, rngs=generators(1)), first)
    assert not torch.equal(SpecAugment(**MASKS)(log_mels, rngs=generators(1, seed=6)), first)


def test_a_mask_is_limited_to_the_axis():
    # unlimited, the start would be drawn below 0, where a mask of 1000 often hides nothing or everything
    masks = SpecAugment(freq_mask_param=1000, time_mask_param=0, n_freq_masks=1, n_time_masks=1)
    log_mels = ramp(400, 8, 6)
    widths = hidden_cells(masks(log_mels, rngs=generators(400)), log_mels)[:, :, 0].sum(axis=1)
    # widths 0..7 are equally likely: 400 draws give each 50 with a standard deviation of 6.6
    counts = np.bincount(widths, minlength=9)
    assert counts[:8].min() > 25 and counts[8] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_masks_keep_the_dtype(dtype):
    assert SpecAugment(**MASKS)(torch.zeros(3, 1, 8, 9, dtype=dtype), rngs=generators(3)).dtype is dtype


def test_the_equaliser_bends_the_spectrum_smoothly_and_within_its_range(always, rng):
    log_mels = -30 + 5 * torch.from_numpy(rng.standard_normal((40, 1, 64, 6)).astype(np.float32))
    bent = equalise(log_mels, gain_db_range=(-6.0, 3.0), top_db=TOP_DB, rngs=generators(40))
    gains = (bent - log_mels)[:, 0]
    assert (gains - gains[:, :, :1]).abs().max() < ATOL_DB  # of a band, at all times
    gains = gains[:, :, 0].numpy()
    assert gains.min() > -6.0 - ATOL_DB and gains.max() < 3.0 + ATOL_DB
    assert gains.min() < -5.0 and gains.max() > 2.0 and gains.std(axis=0).min() > 1.0
    # points are 64 / 5 bands apart, and half a cosine between them is steepest in the middle
    assert np.abs(np.diff(gains, axis=1)).max() < 9.0 * np.pi / 2 * 5 / 63
    assert np.abs(np.diff(gains, axis=1)).max() > 0.1


def test_the_equaliser_keeps_the_floor_where_the_front_end_has_it(always, rng):
    log_mels = windows(rng, 20)
    bent = equalise(log_mels, gain_db_range=(-20.0, 20.0), top_db=TOP_DB, rngs=generators(20))
    floors = [(window.amax(dim=(1, 2, 3)) - TOP_DB).clamp_min(-100.0) for window in (log_mels, bent)]
    assert (bent.amin(dim=(1, 2, 3)) >= floors[1]).all()
    assert (floors[1] < floors[0]).any() and (floors[1] > floors[0]).any()
    for window, original, before, after in zip(bent, log_mels, *floors, strict=True):
        at_floor = original == before
        assert at_floor.any()
        assert (window[at_floor] == max(before, after)).all()


def test_a_low_pass_empties_the_highest_bands(always, rng):
    log_mels = -30 + 5 * torch.from_numpy(rng.standard_normal((50, 1, 40, 6)).astype(np.float32))
    cut = low_pass(log_mels, share_range=(0.5, 0.75), top_db=TOP_DB, rngs=generators(50))
    kept = (cut == log_mels).all(dim=3)[:, 0].sum(dim=1).numpy()
    assert set(kept) <= set(range(20, 31)) and len(set(kept)) > 5
    for window, original, n_kept in zip(cut[:, 0], log_mels[:, 0], kept, strict=True):
        assert torch.equal(window[:n_kept], original[:n_kept])
        assert (window[n_kept:] == max(original.max() - TOP_DB, -100.0)).all()


@pytest.mark.parametrize("change", [
    lambda x, rngs: equalise(x, gain_db_range=(-9, 9), top_db=TOP_DB, rngs=rngs),
    lambda x, rngs: low_pass(x, share_range=(0.3, 0.6), top_db=TOP_DB, rngs=rngs),
])
def test_about_half_of_the_windows_are_filtered(rng, change):
    log_mels = windows(rng, 400, n_mels=8, n_frames=4)
    changed = (change(log_mels, generators(400)) != log_mels).any(dim=3).any(dim=2).sum()
    assert 150 < changed < 250  # 200 with a standard deviation of 10


# what mixes windows

def test_a_blend_adds_powers_by_hand():
    # powers 1 and 100 (mean 50.5) with 1000 and 10 (mean 505): at one mean power the second is 100 and 1
    log_mels = torch.tensor([[[0.0, 20.0]], [[30.0, 10.0]]])
    mixed = blend(log_mels, partners=np.array([1, 0]), shares=np.array([0.75, 1.0]))
    expected = torch.tensor([[[0.75 * 1 + 0.25 * 100, 0.75 * 100 + 0.25 * 1]], [[1000.0, 10.0]]])
    torch.testing.assert_close(mixed, 10 * expected.log10(), rtol=0, atol=ATOL_DB)


def test_a_blend_keeps_mean_power_and_does_not_know_the_partner_s_level(rng):
    log_mels, partners, shares = windows(rng, 5), np.array([1, 2, 3, 4, 0]), np.full(5, 0.4)
    mixed = blend(log_mels, partners=partners, shares=shares)
    means = powers(mixed).mean(dim=(1, 2, 3)) / powers(log_mels).mean(dim=(1, 2, 3))
    torch.testing.assert_close(means, torch.ones(5, dtype=torch.float64), rtol=1e-4, atol=0)
    louder = log_mels + torch.tensor([0.0, 30.0, 0.0, -20.0, 0.0]).reshape(5, 1, 1, 1)
    moved = blend(louder, partners=partners, shares=shares) - (louder - log_mels)
    torch.testing.assert_close(moved, mixed, rtol=0, atol=ATOL_DB)


def test_a_blend_needs_no_floor_of_its_own(rng):
    log_mels = windows(rng, 40)
    mixed = blend(log_mels, partners=np.roll(np.arange(40), 1), shares=rng.random(40))
    assert (mixed.amax(dim=(1, 2, 3)) - mixed.amin(dim=(1, 2, 3))).max() < TOP_DB + ATOL_DB


@pytest.mark.parametrize("level_db", [-1000.0, 500.0])
def test_no_level_is_too_low_or_high_to_blend(level_db):
    log_mels = torch.tensor([[[0.0, 10.0]], [[level_db, level_db + 10]]])
    mixed = blend(log_mels, partners=np.array([1, 0]), shares=np.array([0.5, 0.5]))
    torch.testing.assert_close(mixed, log_mels, rtol=0, atol=ATOL_DB)


class FixedDraws:
    """Stand in for a generator: known weights and a known order."""

    def beta(self, a, b, size):
        assert a == b == 0.4 and size == 3
        return np.array([0.75, 1.0, 0.5])

    def permutation(self, n):
        assert n == 3
        return np.array([1, 2, 0])


def test_mixup_by_hand():
    # one cell has all of its window's power, and with windows at one level the mixture has the first one's
    log_mels, targets = torch.tensor([[[0.0, -50.0]], [[-50.0, 10.0]], [[20.0, -50.0]]]), torch.eye(3)
    mixed, mixed_targets = mixup(log_mels, targets, alpha=0.4, rng=FixedDraws())
    assert mixed_targets.tolist() == [[.75, .25, 0], [0, 1, 0], [.5, 0, .5]]
    share = 10 * np.log10(0.75), 10 * np.log10(0.25)
    expected = [[share[0], share[1]], [-50.0, 10.0], [20.0, 20 + 10 * np.log10(0.5 * 1e-5 + 0.5 * 1e-7)]]
    np.testing.assert_allclose(mixed[:, 0].numpy(), expected, rtol=0, atol=0.01)  # 1e-5 of the power stands at -50 dB
    assert targets.tolist() == torch.eye(3).tolist()


def test_mixup_draws_a_weight_and_a_partner_for_each_window():
    """One weight for the batch left most batches as they were and mixed the rest all alike."""
    n = 200
    _, mixed = mixup(torch.zeros(n, 1, 2, 2), torch.eye(n), alpha=0.2, rng=np.random.default_rng(3))
    own = mixed.diagonal().numpy()
    partners = (mixed - torch.diag(mixed.diagonal())).argmax(dim=1)
    assert len(np.unique(own.round(4))) > 50
    assert own.min() < 0.05 and own.max() > 0.95 and ((own > 0.2) & (own < 0.8)).sum() > 20
    assert len(partners[own < 0.95].unique()) > 50


def test_mixup_keeps_the_rows_of_soft_targets_at_one(rng):
    targets = torch.softmax(torch.from_numpy(rng.standard_normal((8, 6))), dim=1)
    _, mixed = mixup(torch.zeros(8, 1, 4, 4), targets, alpha=0.2, rng=rng)
    np.testing.assert_allclose(mixed.sum(dim=1), 1, rtol=FLOAT32_RTOL)


def test_mixup_with_alpha_zero_is_off(rng):
    log_mels, targets = ramp(4, 2, 3), torch.eye(4)
    assert all(map(torch.equal, mixup(log_mels, targets, alpha=0, rng=rng), (log_mels, targets)))


def test_background_is_mixed_well_below_the_others_and_stays_itself(rng):
    """Background alone has power in the upper half, the others alone in the lower one."""
    log_mels = torch.full((60, 1, 8, 4), -100.0)
    is_background = np.arange(60) % 4 == 0
    log_mels[is_background, :, 4:], log_mels[~is_background, :, :4] = -70.0, -30.0
    mixed = mix_background(log_mels, is_background, snr_db_range=(5.0, 20.0), rng=rng)
    assert torch.equal(mixed[is_background], log_mels[is_background])
    others, before = mixed[~is_background], log_mels[~is_background]
    ratios_db = 10 * (powers(others[:, 0, :4]).sum(dim=(1, 2)) / powers(others[:, 0, 4:]).sum(dim=(1, 2))).log10()
    changed = (others != before).any(dim=3).any(dim=2)[:, 0]
    assert 10 < changed.sum() < 35  # half of 45
    assert torch.equal(others[~changed], before[~changed])
    assert ratios_db[changed].min() > 5 - ATOL_DB and ratios_db[changed].max() < 20 + ATOL_DB
    assert ratios_db[changed].max() - ratios_db[changed].min() > 8


@pytest.mark.parametrize("is_background", [np.zeros(4, dtype=bool), np.ones(4, dtype=bool)])
def test_without_background_or_others_nothing_is_mixed(rng, is_background):
    log_mels = windows(rng, 4)
    assert torch.equal(mix_background(log_mels, is_background, snr_db_range=(5, 20), rng=rng), log_mels)
