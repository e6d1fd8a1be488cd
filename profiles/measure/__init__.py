"""Measuring with torch: the program that each rank runs, from the first kernel to the last collective.

The only part of `profiles` that imports torch. What is measured are values of `profiles.measurement`; what they mean
for the formulas, `profiles.fitting` says.
"""

from profiles.measure.rank import Wish, measure, measure_under_torchrun, num_devices, process_group
from profiles.measure.stopwatch import Backend

__all__ = ["Backend", "Wish", "measure", "measure_under_torchrun", "num_devices", "process_group"]
