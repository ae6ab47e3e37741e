"""A model's first use: its network is converted in a process of its own, and compared on the recordings at hand."""

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.efficientnet_config import FrontendConfig
from models.errors import ConfigError
from utils.networks.conversions import read_metadata
from utils.networks.opening import BackendPlan
from utils.prediction.spans import ReadingPlan, SpanJob, WindowRead, read_spans
from utils.running.parallel import Executor, Lost, run_each

logger = logging.getLogger(__name__)

_N_WINDOWS, _WINDOWS_OF_EACH, _N_RECORDINGS = 16, 4, 32


def convert_first(plan: BackendPlan, paths: Sequence[Path], executor: Executor) -> None:
    """Convert a model that has not been converted yet, and say how far a lower precision is from the checkpoint.

    Parameters
    ----------
    plan : BackendPlan
        From ``plan_backend``.
    paths : sequence of Path
        Recordings; the windows of some are what the converted network is compared on.
    executor : Executor
        Where that is done: PyTorch, which it needs, leaves with the process.

    Raises
    ------
    ConfigError
        If the library was asked for by name and does not give what PyTorch gives.
    """
    converted = plan.converted
    if plan.needs_conversion:
        logger.info("converting %s for %s, once", plan.model_path, plan.library)
        step = max(1, len(paths) // _N_RECORDINGS)
        work = functools.partial(_convert, plan)
        for _, found in run_each(executor, work, [tuple(paths[::step])]):
            if isinstance(found, Lost):
                logger.warning("the network could not be converted (%s): PyTorch is used, which is slower",
                               found.reason)
            elif found.problem and plan.required:
                raise ConfigError(found.problem)
            elif found.problem:
                logger.warning("%s: PyTorch is used, which is slower", found.problem)
            else:
                converted = found.path
    if converted is not None and plan.precision not in (None, "float32"):
        compared = read_metadata(converted)[1].get("compared", {})
        logger.warning("--precision %s: when the network was converted, on %s windows the largest difference of a"
                       " probability was %.2g, and the top class another in %s", plan.precision,
                       compared.get("n_windows"), compared.get("largest_probability_difference", np.nan),
                       compared.get("n_other_classes"))


@dataclass(frozen=True)
class _Converted:
    path: str | None = None
    problem: str = ""


def _convert(plan: BackendPlan, paths: Sequence[Path]) -> _Converted:
    from utils.networks.export import convert  # late: brings PyTorch, which the process that asks does without
    from utils.storage.checkpoints import load_model
    model = load_model(plan.model_path, class_names=plan.class_names)
    windows = list(itertools.islice(_windows(model.description.frontend, paths), _N_WINDOWS))
    if not windows:
        return _Converted(problem="no recording that could be compared on was readable")
    try:
        return _Converted(str(convert(model, np.stack(windows), library=plan.library,
                                      precision=plan.precision or "float32")))
    except ConfigError as error:
        return _Converted(problem=str(error))


def _windows(frontend: FrontendConfig, paths: Sequence[Path]) -> Iterator[np.ndarray]:
    cut = ReadingPlan(frontend, frontend.segment_samples, frontend.segment_samples)
    for index, path in enumerate(paths):
        read = (part.log_mel for part in read_spans(cut, SpanJob(path, index)) if isinstance(part, WindowRead))
        yield from itertools.islice(read, _WINDOWS_OF_EACH)
