"""Chapter 4: is it right? Exact answers to compare a gradient with, and the comparison.

The order of reading:

    exact answers                         differences, enumeration, meta_gradients
    a user's data                         records
    what a gradient must be               scores, replays, estimators
    and which it is                       verdict, explanations, diagnosis
    parts alone                           advantages, inputs, clipped
"""

from metarl_np.check.advantages import explain_advantages
from metarl_np.check.clipped import explain_clipped
from metarl_np.check.diagnosis import Diagnosis, Step, diagnose, explain_step
from metarl_np.check.differences import finite_differences
from metarl_np.check.estimators import (
    estimator_gradients,
    exact_gradients,
    expected_gradients,
)
from metarl_np.check.inputs import explain_inputs
from metarl_np.check.records import record
from metarl_np.check.verdict import Verdict, check_gradient

__all__ = [
    "Diagnosis",
    "Step",
    "Verdict",
    "check_gradient",
    "diagnose",
    "estimator_gradients",
    "exact_gradients",
    "expected_gradients",
    "explain_advantages",
    "explain_clipped",
    "explain_inputs",
    "explain_step",
    "finite_differences",
    "record",
]
