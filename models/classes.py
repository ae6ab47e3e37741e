"""The classes a network tells apart: their order, and what a row of probabilities is decided to mean."""

from collections.abc import Iterable
from dataclasses import dataclass

from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import ConfigError, ManifestError


@dataclass(frozen=True)
class ClassList:
    """The classes in the order of the network's outputs.

    Parameters
    ----------
    names : tuple of str
        Class names; index is label.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"class names must differ, got {', '.join(self.names)}")
        if any(not name.strip() for name in self.names):
            raise ConfigError("class names must not be empty")

    @classmethod
    def from_labels(cls, labels: Iterable[str]) -> "ClassList":
        """Order the classes found: README order when all are default classes, else sorted."""
        found = set(labels)
        if found <= set(DEFAULT_CLASS_NAMES):
            return cls(tuple(name for name in DEFAULT_CLASS_NAMES if name in found))
        return cls(tuple(sorted(found)))

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Return the label of a class name; ManifestError when unknown."""
        if name not in self.names:
            raise ManifestError(f"unknown class {name!r}: the classes are {', '.join(self.names)}")
        return self.names.index(name)
