"""The 1,797 real handwritten digits that scikit-learn ships: a set that is there without any download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fastgan.data.image_set import ImageSet, describe, fetch_from
from fastgan.data.options import DataOptions
from fastgan.errors import FastganError


def load_digits(options: DataOptions) -> ImageSet:
    """The digits as white on black, [1797, size, size, channels], labels 0 to 9.

    The 8x8 images hold 0 to 16. They are enlarged by a bicubic filter in floating point, whose overshoot is
    clipped once, at the end: background stays black, strokes saturate to white.

    Raises FastganError without scikit-learn.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise FastganError(
            "digits: scikit-learn, which holds them, is not installed; run: pip install 'fastgan[demo]'"
        ) from error
    found = datasets.load_digits()
    sources = found.images.astype(np.float32) * (255 / 16)
    pixels = np.empty((len(sources), *options.shape), np.uint8)
    for image, source in zip(pixels, sources, strict=True):
        large = Image.fromarray(source).resize((options.size, options.size), Image.Resampling.BICUBIC)
        image[:] = np.asarray(large).clip(0, 255).round()[:, :, None]
    classes = tuple(str(name) for name in found.target_names)
    return ImageSet(
        name="digits",
        size=options.size,
        channels=options.channels,
        count=len(pixels),
        fetch=fetch_from(pixels),
        labels=found.target.astype(np.int64),
        classes=classes,
        summary=describe(
            "digits",
            count=len(pixels),
            shape=options.shape,
            classes=len(classes),
            where=f"{pixels.nbytes / 1e6:,.1f} MB in memory",
        ),
    )
