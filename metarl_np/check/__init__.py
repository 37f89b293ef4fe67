"""Chapter 4: is it right? Exact answers to compare a gradient with, and the comparison."""

from metarl_np.check.advantages import explain_advantages
from metarl_np.check.diagnosis import (
    Diagnosis,
    Step,
    Verdict,
    check_gradient,
    diagnose,
    explain_step,
)
from metarl_np.check.differences import finite_differences
from metarl_np.check.estimators import (
    estimator_gradients,
    exact_gradients,
    expected_gradients,
)
from metarl_np.check.inputs import explain_clipped, explain_inputs
from metarl_np.check.records import record

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
