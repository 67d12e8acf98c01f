"""Explain the words of the report, each in a sentence or two; docs/glossary.md is the same list."""

import re

GLOSSARY: dict[str, tuple[str, str]] = {
    "accuracy": (
        "accuracy, balanced accuracy",
        "Accuracy is the share of images that are classified correctly. Balanced accuracy is the mean sensitivity of "
        "the classes, so a rare class counts as much as a common one.",
    ),
    "auc": (
        "AUC",
        "The area under the ROC curve: the probability that a random image of the class scores higher than a random "
        "image of another class. 0.5 is guessing, 1 is perfect. Macro: the mean over the classes. With "
        "two classes, both have the same AUC.",
    ),
    "ap": (
        "AP, average precision",
        "The mean PPV over all thresholds, weighted by the sensitivity gained at each. Guessing gives the share of the "
        "class.",
    ),
    "brier": (
        "Brier score",
        "The mean squared distance between the probabilities and the truth. 0 is best.",
    ),
    "calibration": (
        "calibration, calibration error",
        "Probabilities are calibrated if 80 of 100 images with a confidence of 80 % are classified correctly. The "
        "calibration error (ECE) is the mean difference between confidence and accuracy. 0 is best.",
    ),
    "hamming-loss": (
        "Hamming loss",
        "Where an image may have several classes: the share of all answers, one for each image and class, that are "
        "wrong. 0 is best.",
    ),
    "subset-accuracy": (
        "subset accuracy",
        "Where an image may have several classes: the share of images of which every class is answered correctly.",
    ),
    "interval": (
        "confidence interval",
        "A range that shows how much chance there is in a figure: 95 % of intervals made in this way contain the true "
        "value. Where patients are known, patients are counted and not images, because images of one patient resemble "
        "each other. The differences between training runs are included only where several seeds are compared.",
    ),
    "confusion": (
        "confusion matrix",
        "A table that counts images by their true class (row) and by the class that they were assigned to (column).",
    ),
    "delta": (
        "delta, scan direction",
        "The network reads each image along four directions. Delta is the size of its step at each place: where it "
        "is large, the network takes the place in; where it is small, it keeps what it has.",
    ),
    "deletion": (
        "deletion test, insertion test",
        "A map is tested by deleting, or showing, the places that it marks before all others. If the map is right, "
        "the probability of the class falls, or rises, faster than with places in random order.",
    ),
    "epoch": ("epoch", "One pass over all training images."),
    "f1": (
        "F1 score",
        "The harmonic mean of sensitivity and PPV: it is low if either of them is low.",
    ),
    "fold": (
        "fold",
        "One part of the data in cross-validation. Each training run tests on another fold, so that in the end every "
        "image has been a test image once.",
    ),
    "guessing": (
        "guessing",
        "What can be reached without looking at an image. Among K classes guessing gives a balanced accuracy of 1 / K, "
        "an AUC of 0.5, and, if the most frequent class is always chosen, an accuracy equal to its share.",
    ),
    "kappa": (
        "kappa, MCC",
        "Cohen's kappa and Matthews' correlation coefficient measure the agreement between predictions and truth "
        "beyond chance. 0 is guessing, 1 is perfect.",
    ),
    "leaked": (
        "leaked image",
        "A test image that has a near-duplicate, or another image of the same patient, among the training or "
        "validation images. Results on such images may be too good.",
    ),
    "duplicate": (
        "duplicate, near-duplicate",
        "Duplicates are files with the same picture. Near-duplicates differ a little: resized, brightened, saved "
        "again, or the next frame of a clip.",
    ),
    "operating-point": (
        "operating point, threshold",
        "A threshold of the probability at or above which an image is assigned to a class. A low threshold finds "
        "more of the class (sensitivity) and raises more false alarms (specificity).",
    ),
    "ppv": (
        "PPV, NPV",
        "Positive predictive value: of the images that were assigned to the class, the share that belongs to it. "
        "Negative predictive value: the same for all images that were not. Both depend on how common the class is.",
    ),
    "seed": (
        "seed",
        "The number that fixes all random choices of a training run. Another seed gives another network and somewhat "
        "other figures.",
    ),
    "sensitivity": (
        "sensitivity, specificity",
        "Sensitivity (recall) is the share of the images of a class that were found. Specificity is the share of all "
        "other images that were correctly not assigned to it.",
    ),
    "split": (
        "split: training, validation, test",
        "The network learns from the training images (train). The validation images (val) choose the epoch, the "
        "temperature and the thresholds. The test images are used at the end only.",
    ),
    "se": (
        "squeeze-and-excitation, gate",
        "A part of the network that multiplies each channel of a map by a number, its gate: below 1 the channel is "
        "weakened, above 1 strengthened.",
    ),
    "temperature": (
        "temperature",
        "A number by which the network's outputs (logits) are divided so that its probabilities are better "
        "calibrated. Above 1 the network was overconfident. The most probable class stays the same.",
    ),
    "set": (
        "set of classes",
        "The classes that an image may be of: those that are probable enough that the set holds the true class, mostly "
        "in 95 of 100 images like the validation images. A large set means that the network does not know.",
    ),
    "unlike": (
        "unlike the training images",
        "Further away from them than nearly all validation images are: in what the network makes of the image, or in "
        "its grey levels, texture and edges. What is predicted for such an image says nothing.",
    ),
}


def entries_for(page: str) -> dict[str, tuple[str, str]]:
    """Return the entries of which an HTML page, as it is without a glossary, has a word or a link
    to."""
    linked = set(re.findall(r'href="#word-([\w-]+)"', page))
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).casefold()
    return {
        key: entry
        for key, entry in GLOSSARY.items()
        if key in linked
        or any(re.search(rf"\b{re.escape(word)}s?\b", words) for word in entry[0].casefold().split(", "))
    }
