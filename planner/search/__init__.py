"""The offline stage: decision tree, exact choice, shortlist.

search() declares the outer choices (families: batch size, stages, micro-batches, schedule) and the strategies of the
decision tree for each size of stage (tree, space), as rows of numbers (grid). It bounds every family by what its layers
compute (outlook), and prices those that this leaves (pricing, table, instances). Then problems are looked at more and
more closely, the least bound first (explore): bounds with memory (bounds, relaxation), a quick pass, and an exact
choice of strategies for a stage under its memory (stage, with labels, ahead) inside an exact partition of the layers
(partition). That is for balanced load; then it looks elsewhere, for plans that are good in the other scenarios
(elsewhere): where these change the question (question, ground), with a proof where that is cheap, and where they change
the load alone, without. It prices the plans in all scenarios with estimate() (prices), which must agree with the solver
on the best, and chooses the shortlist by an integer program (shortlist, members). Restricted spaces have names
(baselines). docs/search.md has the whole story, with the proof.
"""

from planner.search.baselines import compare_baselines
from planner.search.offline import search
from planner.search.shorthand import plan_from_shorthand

__all__ = ["compare_baselines", "plan_from_shorthand", "search"]
