"""The digits of scikit-learn, which take the place of MNIST where there is no network."""

from pathlib import Path

import numpy as np

from .images import Images


def load_digits(data_dir: Path | None = None) -> Images:
    """Returns scikit-learn's 1797 digits, enlarged to `[n, 28, 28]`; the last 360 are the test set."""
    from sklearn import datasets  # slow to import, and rarely needed

    del data_dir  # they come with scikit-learn
    pixels, digits = datasets.load_digits(return_X_y=True)
    small = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.pad(small.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)))
    labels = digits.astype(np.uint8)
    source = "digits of scikit-learn, enlarged from 8x8 to 28x28"
    return Images("digits", source, images[:-360], labels[:-360], images[-360:], labels[-360:])
