#!/usr/bin/env python3
"""Fits the polynomial of the normal distribution's tail in src/ops/activation_cpu.c.

With t = 1 / (1 + z / 2):  erfc(z) = e^(-z^2) t q(t)  for z in 0..14/sqrt(2). q is a polynomial whose largest relative error is
as small as its degree allows (iterated weights, Lawson 1961); the coefficients are rounded to f32 and checked as they are.

    python3 tools/fit/erfc.py [DEGREE]       coefficients, highest first, and the largest relative errors
"""
import math
import sys

import numpy as np

LARGEST = 14 / math.sqrt(2)


def fit(t, want, degree):
    weight = np.ones_like(t)
    for _ in range(400):
        rows = np.vander(t, degree + 1) / want[:, None] * np.sqrt(weight)[:, None]
        c = np.linalg.lstsq(rows, np.sqrt(weight), rcond=None)[0]
        error = np.abs(np.polyval(c, t) / want - 1)
        weight *= error / error.mean() + 1e-3
        weight /= weight.mean()
    return c


def main():
    degree = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    low = 1 / (1 + LARGEST / 2)
    t = low + (1 - low) * (1 - np.cos(np.linspace(0, math.pi, 4001))) / 2
    z = 2 * (1 / t - 1)
    want = np.array([math.erfc(x) * math.exp(x * x) for x in z]) / t
    c = fit(t, want, degree)
    rounded = c.astype("f4")
    exact = np.abs(np.polyval(rounded.astype("f8"), t) / want - 1).max()
    sum_, t4 = np.full(t.shape, rounded[0], "f4"), t.astype("f4")
    for x in rounded[1:]:
        sum_ = sum_ * t4 + x
    print("\n".join(f"{float(x):.9g}f" for x in rounded))
    print(f"degree {degree}: relative error {exact:.2e}, {np.abs(sum_ / want - 1).max():.2e} when summed in f32")


if __name__ == "__main__":
    main()
