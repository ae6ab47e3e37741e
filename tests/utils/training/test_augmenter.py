import numpy as np
import torch

from models.efficientnet_config import AugmentationConfig
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
    augmentation = AugmentationConfig(freq_mask_param=2, time_mask_param=2, **changes)
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
