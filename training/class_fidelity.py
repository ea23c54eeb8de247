"""Does a class-conditional model draw what it is asked for? A classifier fitted on the real images judges."""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

# A support vector machine's fitting time grows with the square of the images.
LARGEST_FIT = 5000


def class_fidelity(
    real: torch.Tensor, real_labels: torch.Tensor, samples: torch.Tensor, sample_labels: torch.Tensor
) -> dict[str, float | int | str]:
    """The share of samples to which the classifier gives the class that was asked for.

    Args:
        real (`torch.Tensor` of `uint8`, shape (N, C, H, W)): the real images, with `real_labels` of shape (N,).
        samples (`torch.Tensor` of `uint8`, shape (M, C, H, W)): the samples, with `sample_labels` of shape (M,).

    Returns:
        `dict`: the share, the number of samples, the classifier, and what share of held-out real images it gets right:
        the ceiling of the first figure.
    """
    x, y = real.flatten(1).numpy(), real_labels.numpy()
    if len(x) > LARGEST_FIT:
        chosen = np.random.default_rng(0).choice(len(x), LARGEST_FIT, replace=False)
        x, y = x[chosen], y[chosen]
    x_fit, x_held, y_fit, y_held = train_test_split(x, y, test_size=0.2, random_state=0)
    classifier = make_pipeline(StandardScaler(with_std=False), SVC(C=10.0)).fit(x_fit, y_fit)
    predicted = classifier.predict(samples.flatten(1).numpy())
    return {
        "class_fidelity": float((predicted == sample_labels.numpy()).mean()),
        "class_fidelity_samples": len(samples),
        "class_fidelity_of_held_out_images": float(classifier.score(x_held, y_held)),
        "class_fidelity_classifier": f"scikit-learn SVC(C=10) on the pixels of {len(x_fit)} training images",
    }
