"""The offline stage: decision tree, exact choice, shortlist.

search() declares the outer choices (families: batch size, stages, micro-batches, schedule) and the strategies of the
decision tree for each size of stage (tree); turns layers and strategies into numbers (table); bounds every family and
solves them in the order of their bounds (explore): an exact choice of strategies for a stage under its memory (stage)
inside an exact partition of the layers (partition). It does so for every scenario, prices the plans again with
estimate(), and chooses the shortlist by an integer program (shortlist).
"""

from planner.search.offline import search
from planner.search.shorthand import plan_from_shorthand

__all__ = ["plan_from_shorthand", "search"]
