"""Formulas: seconds and bytes of a plan; one formula has one home.

estimate() is the front door. StepPrices tells the same of one plan, time only, for many loads and placements at once.

kernels       one device: matrix products, memory-bound work, overlap
collectives   groups of devices under tiers of links
message       what is sent: collective, group, bytes, how often; a list of messages has a price
part, dense, attention, experts, vocabulary, joints, state
              what one device pays for a part of a layer
layer         one layer under one strategy
traffic       all messages of a layer, as layer prices them
work          what the layers of a stage take and hold together
prepared      a plan but for what the load of experts changes
step          bills of stages, the step that they make, and many steps at once
numbers       formulas that take arrays as well
boundary      between layers and stages
pipeline      from stages to the step
passes        the same parts by stage and pass
timeline      the same run event by event: the oracle of pipeline
load, balance how expert load spreads over ranks
migration     moving experts
switch        going over to another plan; its parts:
  holding         what a device holds of a layer
  digits, nested  closed forms where degrees, stages and islands nest
  redistribution  the general case
  busy            from bytes and messages to seconds
assumptions   what a price takes for granted
band          how far off a price may be
rules, check  what cannot be computed at all
"""

from planner.cost.estimate import estimate, estimates
from planner.cost.load import Seats
from planner.cost.step import StepPrices, Steps

__all__ = ["Seats", "StepPrices", "Steps", "estimate", "estimates"]
