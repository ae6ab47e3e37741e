import numpy as np
import pytest

from models.sound_variation import PEAK, Variation, blend, change_speed, colour, draw_variation, fill, vary

RATE = 16000
N_SAMPLES = RATE  # one second: frequencies are whole bins of the spectrum
PLAIN = Variation(speed=1.0, n_mixed=0, repeated_share=None, masked=None, curve_db=None, low_pass_hertz=None,
                  high_pass_hertz=None, noise_db=None, noise_slope=0.0)
FLOAT32 = 1e-5  # of samples near 1: a transform there and back in float32
BIN = 2.0  # Hz: neighbouring bins of a spectrum of half a second
PASSED_DB = 1e-3  # float32, through a transform and back
FILTERED_DB = 60.0  # a filter that stops by 80 dB leaves less, whatever float32 adds
LEVEL_DB = 0.3  # sampling error of the power of 16 000 random samples (0.05 dB), several times over
N_DRAWS = 2000
SHARE = 0.05  # of 2000 draws: more than four standard errors of any share


def changed(**changes):
    return Variation(**{**PLAIN.__dict__, **changes})


def tone(hertz, *, n_samples=N_SAMPLES, level=0.3):
    return (level * np.sin(2 * np.pi * hertz * np.arange(n_samples) / RATE)).astype(np.float32)


def noise(rng, n_samples=N_SAMPLES):
    return rng.standard_normal(n_samples, dtype=np.float32)


def strongest_hertz(waveform):
    return float(np.argmax(np.abs(np.fft.rfft(waveform))) * RATE / len(waveform))


def power_db(waveform, low, high):
    """Return the power of a band in dB, of any reference."""
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    hertz = np.fft.rfftfreq(len(waveform), 1 / RATE)
    return float(10 * np.log10(spectrum[(hertz >= low) & (hertz < high)].sum() + 1e-30))


def apply(pieces, variation, *, seed=0, n_samples=N_SAMPLES):
    return vary(pieces, variation, n_samples=n_samples, sample_rate=RATE, rng=np.random.default_rng(seed))


# all of it

@pytest.mark.parametrize("length", [1, 1000, N_SAMPLES - 1, N_SAMPLES, 3 * N_SAMPLES])
@pytest.mark.parametrize("variation", [
    PLAIN, changed(speed=1.5), changed(speed=0.7), changed(repeated_share=0.1), changed(n_mixed=1),
    changed(low_pass_hertz=3000.0, noise_db=-20.0), changed(masked=(0.9, 0.3)), changed(curve_db=np.full(7, 6.0))],
    ids=lambda variation: ",".join(name for name, value in variation.__dict__.items() if value != getattr(
        PLAIN, name)) if not isinstance(variation.curve_db, np.ndarray) else "curve")
def test_what_comes_out_has_the_wanted_length_and_peak(rng, length, variation):
    pieces = [noise(rng, length) for _ in range(1 + variation.n_mixed)]
    varied = apply(pieces, variation)
    assert varied.shape == (N_SAMPLES,) and varied.dtype == np.float32
    assert np.abs(varied).max() == pytest.approx(PEAK, abs=FLOAT32)


@pytest.mark.parametrize("seed", range(8))
def test_silence_stays_silent(seed):
    variation = draw_variation(np.random.default_rng(seed))
    pieces = [np.zeros(N_SAMPLES, dtype=np.float32) for _ in range(1 + variation.n_mixed)]
    varied = apply(pieces, variation, seed=seed)
    assert varied.dtype == np.float32 and not varied.any()


def test_a_sound_that_is_masked_away_leaves_silence():
    clicked = np.zeros(N_SAMPLES, dtype=np.float32)
    clicked[N_SAMPLES // 2] = 1.0
    varied = apply([clicked], changed(masked=(0.4, 0.2)))
    assert not varied.any()


def test_one_generator_gives_one_result(rng):
    pieces, variation = [noise(rng, 3 * N_SAMPLES), noise(rng, 500)], changed(n_mixed=1, noise_db=-10.0)
    np.testing.assert_array_equal(apply(pieces, variation, seed=1), apply(pieces, variation, seed=1))
    assert not np.array_equal(apply(pieces, variation, seed=1), apply(pieces, variation, seed=2))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_handed_in_is_left_as_it_is(rng, seed):
    variation = draw_variation(np.random.default_rng(seed))
    pieces = [noise(rng, length) for length in (2 * N_SAMPLES, 700, N_SAMPLES)[:1 + variation.n_mixed]]
    before = [piece.copy() for piece in pieces]
    apply(pieces, variation, seed=seed)
    for piece, old in zip(pieces, before, strict=True):
        np.testing.assert_array_equal(piece, old)


def test_a_mask_empties_its_share_of_the_window(rng):
    varied = apply([noise(rng)], changed(masked=(0.25, 0.5)))
    quarter = N_SAMPLES // 4
    assert not varied[quarter:3 * quarter].any()
    assert np.count_nonzero(varied) == N_SAMPLES - 2 * quarter


def test_a_mask_may_run_over_the_end(rng):
    varied = apply([noise(rng)], changed(masked=(0.9, 0.4)))
    assert not varied[round(0.9 * N_SAMPLES):].any()
    assert varied[:round(0.9 * N_SAMPLES)].all()


def test_a_repeated_share_makes_the_window_periodic(rng):
    varied, period = apply([noise(rng)], changed(repeated_share=0.25)), N_SAMPLES // 4
    np.testing.assert_array_equal(varied[period:], varied[:-period])
    assert len(np.unique(varied[:period])) > period // 2  # it is not one sample, repeated


# the steps

@pytest.mark.parametrize(("speed", "hertz"), [(2.0, 1000.0), (0.5, 250.0), (1.25, 625.0)])
def test_speed_moves_pitch_and_duration_together(speed, hertz):
    faster = change_speed(tone(500), speed=speed)
    assert faster.dtype == np.float32
    assert len(faster) == pytest.approx(N_SAMPLES / speed, abs=2)  # samples
    assert strongest_hertz(faster) == pytest.approx(hertz, abs=BIN)


def test_a_speed_of_one_changes_nothing():
    waveform = tone(500)
    np.testing.assert_array_equal(change_speed(waveform, speed=1.0), waveform)


@pytest.mark.parametrize("speed", [0.6, 1.6, 100.0])
def test_even_one_sample_can_be_played_faster(speed):
    assert len(change_speed(np.ones(1, dtype=np.float32), speed=speed)) >= 1


def test_fill_cuts_a_stretch_of_a_longer_waveform(rng):
    waveform = np.arange(1000, dtype=np.float32)
    firsts = set()
    for _ in range(200):
        piece = fill(waveform, n_samples=990, rng=rng)
        np.testing.assert_array_equal(piece, np.arange(piece[0], piece[0] + 990))
        firsts.add(int(piece[0]))
    assert firsts == set(range(11))  # first and last place too


def test_fill_repeats_a_shorter_waveform_from_any_place(rng):
    waveform, firsts = np.arange(5, dtype=np.float32), set()
    for _ in range(100):
        filled = fill(waveform, n_samples=12, rng=rng)
        np.testing.assert_array_equal(filled, (filled[0] + np.arange(12)) % 5)
        firsts.add(int(filled[0]))
    assert firsts == set(range(5))


def test_fill_of_the_right_length_is_the_waveform(rng):
    waveform = noise(rng)
    np.testing.assert_array_equal(fill(waveform, n_samples=N_SAMPLES, rng=rng), waveform)


def test_pieces_are_mixed_at_levels_within_twelve_decibels_however_loud_they_were(rng):
    differences = []
    for _ in range(300):
        loud, faint = tone(500, level=0.9), tone(3000, level=0.001)
        mixed = blend([loud, faint], rng=rng)
        differences.append(power_db(mixed, 2900, 3100) - power_db(mixed, 400, 600))
    assert -12 - LEVEL_DB <= min(differences) < -10 and 10 < max(differences) <= 12 + LEVEL_DB
    assert abs(np.mean(differences)) < 2  # dB: five standard errors of the mean of 300 draws


def test_a_silent_piece_adds_nothing(rng):
    alone = blend([tone(500)], rng=rng)
    np.testing.assert_array_equal(blend([tone(500), np.zeros(N_SAMPLES, dtype=np.float32)], rng=rng), alone)


def test_a_low_pass_removes_what_is_above_and_nothing_below(rng):
    waveform = noise(rng)
    filtered = colour(waveform, changed(low_pass_hertz=2000.0), sample_rate=RATE, rng=rng)
    assert filtered.dtype == np.float32
    assert power_db(filtered, 2001, 8001) < power_db(waveform, 2001, 8001) - FILTERED_DB
    assert power_db(filtered, 0, 2000) == pytest.approx(power_db(waveform, 0, 2000), abs=PASSED_DB)


def test_a_high_pass_removes_what_is_below_and_nothing_above(rng):
    waveform = noise(rng)
    filtered = colour(waveform, changed(high_pass_hertz=1000.0), sample_rate=RATE, rng=rng)
    assert power_db(filtered, 0, 1000) < power_db(waveform, 0, 1000) - FILTERED_DB
    assert power_db(filtered, 1000, 8001) == pytest.approx(power_db(waveform, 1000, 8001), abs=PASSED_DB)


def test_a_curve_gives_each_frequency_its_gain():
    """The second and the sixth point of seven lie at 152 and 6305 Hz."""
    curve = np.array([0.0, 6.0, 0.0, 0.0, 0.0, -12.0, 0.0])
    for hertz, gain_db in ((152.0, 6.0), (6305.0, -12.0), (980.0, 0.0), (20.0, 0.0)):
        waveform = tone(hertz)
        changed_by = (power_db(colour(waveform, changed(curve_db=curve), sample_rate=RATE,
                                      rng=np.random.default_rng(0)), hertz - 5, hertz + 6)
                      - power_db(waveform, hertz - 5, hertz + 6))
        assert changed_by == pytest.approx(gain_db, abs=LEVEL_DB)


@pytest.mark.parametrize("noise_db", [-6.0, -30.0])
@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.25])
def test_noise_lies_as_far_below_the_window_as_was_drawn(rng, noise_db, slope):
    waveform = tone(1000)
    added = colour(waveform, changed(noise_db=noise_db, noise_slope=slope), sample_rate=RATE, rng=rng) - waveform
    found = 10 * np.log10(np.mean(added ** 2) / np.mean(waveform ** 2))
    assert found == pytest.approx(noise_db, abs=LEVEL_DB)


@pytest.mark.parametrize(("slope", "per_octave_db"), [(-1.0, 0.0), (0.0, 3.01)])
def test_the_colour_of_noise(rng, slope, per_octave_db):
    """White noise has twice the power in the next octave, pink noise the same."""
    added = colour(tone(100), changed(noise_db=0.0, noise_slope=slope), sample_rate=RATE, rng=rng) - tone(100)
    for low in (500, 1000, 2000):
        step = power_db(added, 2 * low, 4 * low) - power_db(added, low, 2 * low)
        assert step == pytest.approx(per_octave_db, abs=1.0)  # dB: 500 bins have 0.2 dB of sampling error


def test_nothing_drawn_is_nothing_done(rng):
    waveform = noise(rng)
    np.testing.assert_array_equal(colour(waveform, PLAIN, sample_rate=RATE, rng=rng), waveform)
    varied = apply([waveform], PLAIN)
    np.testing.assert_allclose(varied, waveform * (PEAK / np.abs(waveform).max()), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("n_samples", [255, 256, 1])
def test_odd_and_even_lengths_keep_theirs(rng, n_samples):
    filtered = colour(noise(rng, n_samples), changed(low_pass_hertz=3000.0, noise_db=-20.0), sample_rate=RATE, rng=rng)
    assert filtered.shape == (n_samples,) and np.isfinite(filtered).all()


# the draw

def test_a_draw_is_decided_by_its_generator():
    first, again = (draw_variation(np.random.default_rng([1, 2])) for _ in range(2))
    np.testing.assert_equal(first.__dict__, again.__dict__)


def is_plain(draw):
    steps = (draw.repeated_share, draw.masked, draw.curve_db, draw.low_pass_hertz, draw.high_pass_hertz, draw.noise_db)
    return draw.speed == 1 and draw.n_mixed == 0 and all(step is None for step in steps)


def test_draws_stay_in_their_ranges_and_leave_steps_out(rng):
    drawn = [draw_variation(rng) for _ in range(N_DRAWS)]
    draws = [draw for draw in drawn if not is_plain(draw)]
    assert len(draws) / N_DRAWS == pytest.approx(0.65 * 0.97, abs=SHARE)  # 3 % of the others are plain by chance
    speeds = np.array([draw.speed for draw in draws])
    assert 2 ** -0.7 <= speeds.min() < 0.65 and 1.55 < speeds.max() <= 2 ** 0.7
    assert np.mean(speeds == 1.0) == pytest.approx(0.5, abs=SHARE)
    assert np.bincount([draw.n_mixed for draw in draws]) / len(draws) == pytest.approx([0.4, 0.4, 0.2], abs=SHARE)
    for name, share in (("repeated_share", 0.2), ("masked", 0.2), ("curve_db", 0.5), ("low_pass_hertz", 0.25),
                        ("high_pass_hertz", 0.15), ("noise_db", 0.3)):
        assert np.mean([getattr(draw, name) is not None for draw in draws]) == pytest.approx(share, abs=SHARE), name
    curves = np.concatenate([draw.curve_db for draw in draws if draw.curve_db is not None])
    assert curves.min() >= -12 and curves.max() <= 12 and len(curves) % 7 == 0
    low = [draw.low_pass_hertz for draw in draws if draw.low_pass_hertz]
    assert 1500 <= min(low) and max(low) <= 15000 and np.median(low) == pytest.approx(4743, rel=0.2)  # octaves
