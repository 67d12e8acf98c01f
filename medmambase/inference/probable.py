"""Say what is called of an image, or of a patient, by its probabilities."""

import numpy as np
import numpy.typing as npt

from medmambase.model.task import MULTI_LABEL, SINGLE_LABEL


class Probable:
    """What is called of what has ``classes`` and ``probabilities``, which may be None.
    ``thresholds``, float64 (classes,), are those of a network that calls any number of classes;
    None of one that calls the most probable class."""

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64] | None
    thresholds: npt.NDArray[np.float64] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes that are called: one, or of a multi-label network any number."""
        if self.probabilities is None:
            return ()
        if self.thresholds is None:
            return (self.classes[int(SINGLE_LABEL.called(self.probabilities))],)
        called = MULTI_LABEL.called(self.probabilities, self.thresholds)
        return tuple(name for name, there in zip(self.classes, called, strict=True) if there)

    @property
    def label(self) -> str | None:
        """The name of the most probable class, the first of equals; of a multi-label network
        ``labels`` with "; " between them, "" for none."""
        return None if self.probabilities is None else "; ".join(self.labels)

    @property
    def probability(self) -> float | None:
        """The probability of ``label``; None of a multi-label network, where each class has its
        own."""
        several = self.probabilities is None or self.thresholds is not None
        return None if several or self.probabilities is None else float(self.probabilities.max())

    @property
    def by_class(self) -> dict[str, float]:
        """Each class with its probability; empty without probabilities."""
        return {} if self.probabilities is None else dict(zip(self.classes, self.probabilities.tolist(), strict=True))
