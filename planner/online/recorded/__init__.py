"""Recorded loads, replayed under policies: what ours, those of others and yardsticks would have done.

`trace` is what was recorded, `job` the job that a trace without its plan is replayed as; a policy of `contestants`, of
`rivals` or of `yardsticks` (best in `hindsight`) makes a `course` over it; `accounts` says what a course comes to, the
same for all; `replay` sets them side by side.
"""
