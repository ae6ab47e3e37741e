"""A larger EfficientNet that begins as the function a smaller one computes.

Chen, Goodfellow, Shlens (2016), "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR: channels are copied and
what they feed is shared among the copies (section 3.2), added blocks are identities (section 3.3). The shares are
drawn, so that the copies learn different things afterwards.
"""

from collections.abc import Mapping

import numpy as np
import torch
from efficientnet_pytorch import EfficientNet
from torch import Tensor

_LEAST_SHARE = 0.25  # of a channel's weight that each of its copies gets, times one over their number


def grow(weights: Mapping[str, Tensor], larger: EfficientNet, smaller: EfficientNet, *, seed: int
         ) -> dict[str, Tensor]:
    """Return weights of a larger EfficientNet with which its features are the smaller one's.

    Parameters
    ----------
    weights : Mapping
        Body of the smaller network.
    larger, smaller : EfficientNet
        Their blocks are compared; both are left as they are.
    seed : int
        Of the shares.

    Returns
    -------
    dict of str to torch.Tensor
        Body of the larger network, float32. A feature that the larger network has more is a copy of one of the
        smaller's.
    """
    rng = np.random.default_rng(seed)
    grown: dict[str, Tensor] = {}
    own = {name: value.detach().clone() for name, value in larger.state_dict().items() if not name.startswith("_fc.")}
    sources = _sources(larger, smaller)
    for name, value in own.items():
        source = _source_name(name, sources)
        if source is None:
            grown[name] = torch.zeros_like(value) if _ends_block(name) else value
        else:
            grown[name] = _widened(weights[source].float(), value, rng)
    return grown


def _sources(larger: EfficientNet, smaller: EfficientNet) -> dict[int, int | None]:
    """Return, for each block of the larger network, the block of the smaller it begins as; None where it is added."""
    sources: dict[int, int | None] = {}
    first_large = first_small = 0
    for large, small in zip(_repeats(larger), _repeats(smaller), strict=True):
        for place in range(large):
            sources[first_large + place] = first_small + place if place < small else None
        first_large, first_small = first_large + large, first_small + small
    return sources


def _repeats(network: EfficientNet) -> list[int]:
    """Return the number of blocks in each stage, as the library builds them."""
    depth = network._global_params.depth_coefficient
    return [int(np.ceil(depth * stage.num_repeat)) for stage in network._blocks_args]


def _source_name(name: str, sources: Mapping[int, int | None]) -> str | None:
    if not name.startswith("_blocks."):
        return name
    _, number, rest = name.split(".", 2)
    source = sources[int(number)]
    return None if source is None else f"_blocks.{source}.{rest}"


def _ends_block(name: str) -> bool:
    """Whether a tensor of an added block must be zero for the block to add nothing to what it passes on."""
    return name.endswith(("_bn2.weight", "_bn2.bias"))


def _widened(old: Tensor, template: Tensor, rng: np.random.Generator) -> Tensor:
    """Copy the channels of a tensor until it has the template's shape; inputs that are copies share the weight."""
    if old.shape == template.shape:
        return old.clone().to(template.dtype)
    widened = old[torch.arange(template.shape[0]) % old.shape[0]]
    if old.ndim == 4 and template.shape[1] != old.shape[1]:
        n_old, n_new = old.shape[1], template.shape[1]
        source = np.arange(n_new) % n_old
        shares = _LEAST_SHARE + rng.random((template.shape[0], n_new))
        copied = np.eye(n_old)[source]  # which channel an input is a copy of, as 0 and 1
        shares /= (shares @ copied)[:, source]
        widened = widened[:, source] * torch.from_numpy(shares).float()[:, :, None, None]
    return widened.to(template.dtype)
