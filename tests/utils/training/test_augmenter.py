import numpy as np
import pytest
import torch

from models.efficientnet_config import AugmentationConfig
from models.errors import ConfigError
from tests.conftest import tiny_config
from utils.storage.spectrograms import ArrayDataset, Batch
from utils.training.augmenter import Augmenter

CPU = torch.device("cpu")
ROUNDING = 1e-6  # float32 sums of a few terms


def windows(rng, n_windows, *, n_classes=2):
    log_mels = rng.standard_normal((n_windows, 4, 5)).astype(np.float32)
    return ArrayDataset(log_mels, np.arange(n_windows) % n_classes)


def batch_of(dataset, indices):
    log_mels, labels, numbers = zip(*(dataset[index] for index in indices), strict=True)
    return Batch(torch.stack(log_mels), torch.tensor(labels), torch.tensor(numbers))


def augmenting_config(**changes):
    augmentation = AugmentationConfig(**{"freq_mask_param": 2, "time_mask_param": 2, "use_equaliser": False,
                                         "use_low_pass": False, **changes})
    return tiny_config(use_augmentation=True, augmentation=augmentation)


def test_a_window_is_masked_by_its_index_whatever_its_batch(rng):
    dataset = windows(rng, 6)
    augment = Augmenter(config=augmenting_config(use_mixup=False), n_classes=2, epoch=3)
    alone, _ = augment(batch_of(dataset, [4]), number=0, device=CPU)
    among, _ = augment(batch_of(dataset, [1, 0, 4, 2]), number=5, device=CPU)
    assert torch.equal(among[2], alone[0])
    assert not torch.equal(alone[0], dataset[4][0])


def test_epoch_and_seed_change_the_masks(rng):
    dataset, config = windows(rng, 6), augmenting_config(use_mixup=False)
    batch = batch_of(dataset, range(6))
    first, _ = Augmenter(config=config, n_classes=2, epoch=1)(batch, number=0, device=CPU)
    again, _ = Augmenter(config=config, n_classes=2, epoch=1)(batch, number=0, device=CPU)
    later, _ = Augmenter(config=config, n_classes=2, epoch=2)(batch, number=0, device=CPU)
    other, _ = Augmenter(config=config.replace(seed=7), n_classes=2, epoch=1)(batch, number=0, device=CPU)
    assert torch.equal(first, again)
    assert not torch.equal(first, later) and not torch.equal(first, other)


def test_mixup_targets_are_distributions(rng):
    dataset = windows(rng, 8, n_classes=3)
    batch = batch_of(dataset, range(8))
    augment = Augmenter(config=augmenting_config(mixup_alpha=1.0), n_classes=3, epoch=1)
    inputs, targets = augment(batch, number=0, device=CPU)
    assert inputs.shape == batch.log_mel.shape and targets.shape == (8, 3)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8), rtol=0, atol=ROUNDING)
    assert ((targets > 0) & (targets < 1)).any()


def test_without_augmentation_a_batch_stays_as_it_is(rng):
    batch = batch_of(windows(rng, 4), range(4))
    inputs, targets = Augmenter(config=tiny_config(), n_classes=2, epoch=1)(batch, number=0, device=CPU)
    assert torch.equal(inputs, batch.log_mel)
    assert torch.equal(targets, torch.eye(2)[batch.labels])


def test_masks_come_after_all_mixing(rng):
    """A mask of one window must not be filled with the sound of another, nor a mixture show where it was."""
    dataset = windows(rng, 8)
    batch = batch_of(dataset, range(8))
    config = augmenting_config(mixup_alpha=1.0, use_time_shift=False)
    unmasked = config.replace(augmentation=config.augmentation.replace(use_spec_augment=False))
    mixed, _ = Augmenter(config=unmasked, n_classes=2, epoch=1)(batch, number=0, device=CPU)
    inputs, _ = Augmenter(config=config, n_classes=2, epoch=1)(batch, number=0, device=CPU)
    hidden = inputs != mixed
    means = mixed.mean(dim=(2, 3), keepdim=True).expand_as(mixed)
    assert hidden.any() and not hidden.all()
    torch.testing.assert_close(inputs[hidden], means[hidden], rtol=0, atol=10 * ROUNDING)


def test_a_batch_is_mixed_by_its_number(rng):
    batch, config = batch_of(windows(rng, 8), range(8)), augmenting_config(mixup_alpha=1.0)
    augment = Augmenter(config=config, n_classes=2, epoch=1)
    (_, first), (_, again), (_, other) = (augment(batch, number=number, device=CPU) for number in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_background_is_mixed_by_its_label_and_leaves_labels_alone(rng):
    dataset = windows(rng, 12, n_classes=3)
    batch = batch_of(dataset, range(12))
    config = augmenting_config(use_background_mix=True, use_mixup=False, use_spec_augment=False, use_time_shift=False)
    inputs, targets = Augmenter(config=config, n_classes=3, epoch=1, background_label=2)(batch, number=0, device=CPU)
    changed = (inputs != batch.log_mel).flatten(1).any(dim=1)
    assert changed.any() and not changed[batch.labels == 2].any()
    assert torch.equal(targets, torch.eye(3)[batch.labels])


def test_background_mix_without_its_class_is_refused():
    with pytest.raises(ConfigError, match="use_background_mix needs the class environmental_sound.*switch"):
        Augmenter(config=augmenting_config(use_background_mix=True), n_classes=2, epoch=1)
    Augmenter(config=augmenting_config(use_background_mix=True).replace(use_augmentation=False), n_classes=2, epoch=1)
