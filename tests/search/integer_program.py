"""The pipeline problem as an integer linear program, an oracle that shares no line with the search.

    variables   x[i, k, r]   layer i is on stage k under strategy r                              0 or 1
                e[i, k, r]   layer i is the first of a stretch of stage k, under r               >= 0
                t[i, k, a, b] layer i follows its neighbour on stage k, layout b after layout a  >= 0
                w[k]         the largest workspace of stage k, in bytes                          >= 0
                peak[j], once                                                                    >= 0
    minimise    sum of peak + sum over k, beats of filling x beats(k) + once                     [_objective]
    subject to  each layer has one stage and one strategy                                        [_one_each]
                stages hold unbroken stretches in order, each at least a layer; or given pieces  [_stretches]
                e[i, k, r] >= x[i, k, r] - sum over s of x[i-1, k, s]                            [_entries]
                t[i, k, a, b] >= x of i-1 in layout a + x of i in layout b - 1, all on stage k   [_transitions]
                w[k] >= workspace of each layer of k                                             [_workspaces]
                fixed + in flight x (flying + carried by e) + entry buffers of e + w[k] <= limit [_memory]
                peak[j] >= weights of peak j x beats(k), for each k                              [_peaks]
                once >= sum of work once per step of the layers of k, for each k                 [_once]
                bytes on the host of the layers of k <= its limit                                [_host]
    where       beats(k) = sum of beats x + messages of e + transitions of t

e, t, w, peak and once are no integers: nothing wants them larger than the sums that bound them. PuLP with HiGHS.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pulp

from planner.search.problem import Pipeline


class Program:
    """One problem; seconds and bytes are scaled so that the solver's absolute tolerances do not matter."""

    def __init__(self, problem: Pipeline, seconds: float = 1.0, bytes_each: float = 1.0) -> None:
        self.problem = problem
        self.seconds, self.bytes_each = seconds, bytes_each
        self.program = pulp.LpProblem("pipeline", pulp.LpMinimize)
        self.stages, self.layers = range(len(problem.flights)), range(len(problem.sequence))
        self.x = {key: self._variable("x", key, cat="Binary") for key in self._keys(self.layers)}
        self.e = {key: self._variable("e", key, lowBound=0) for key in self._keys(self.layers[1:])}
        self.t = {key: self._variable("t", key, lowBound=0) for key in self._changes()}
        self.w = [self._variable("w", (k,), lowBound=0) for k in self.stages]
        self.peak = [self._variable("peak", (j,), lowBound=0) for j in range(len(problem.rhythm.peaks))]
        self.once = self._variable("once", (), lowBound=0)

    def solve(self) -> tuple[list[tuple[tuple[int, int], ...]], list[int]] | None:
        """(Stretches of each stage, row of each layer); None if nothing fits."""
        beats = [self._beats(k) for k in self.stages]
        self._objective(beats)
        self._one_each()
        self._stretches()
        self._entries()
        self._transitions()
        self._workspaces()
        self._memory()
        self._host()
        self._peaks(beats)
        self._once()
        exact = {"mip_abs_gap": 0.0, "mip_feasibility_tolerance": 1e-9, "primal_feasibility_tolerance": 1e-9}
        self.program.solve(pulp.HiGHS(msg=False, threads=1, gapRel=0.0, **exact))
        if self.program.status == pulp.LpStatusInfeasible:
            return None
        assert self.program.sol_status == pulp.LpSolutionOptimal
        chosen = {i: (k, r) for (i, k, r), variable in self.x.items() if variable.value() > 0.5}
        return self._read([chosen[i][0] for i in self.layers]), [chosen[i][1] for i in self.layers]

    def _variable(self, name, key, **kind):
        return self.program.add_variable("_".join([name, *map(str, key)]), **kind)

    def _choices(self, i: int, k: int):
        return self.problem.tables[k].choices[self.problem.sequence[i]]

    def _keys(self, layers):
        return [(i, k, r) for i in layers for k in self.stages for r in range(len(self._choices(i, k).once_s))]

    def _changes(self):
        for i, k in product(self.layers[1:], self.stages):
            layouts = [sorted(set(self._choices(n, k).layout.tolist())) for n in (i - 1, i)]
            yield from ((i, k, a, b) for a, b in product(*layouts) if a != b)

    def _on(self, i: int, k: int, layout: int | None = None):
        """1 if layer i is on stage k, with this layout if one is given."""
        return pulp.lpSum(
            self.x[i, k, r] for r, own in enumerate(self._choices(i, k).layout) if layout in (None, int(own))
        )

    def _beats(self, k: int):
        """[beats] of a stage."""
        table, tier, terms = self.problem.tables[k], self.problem.tiers[k], defaultdict(list)
        for number, message in enumerate(table.message_beats):
            for (i, stage, r), variable in self.x.items():
                if stage == k:
                    terms[number].append(float(self._choices(i, k).beats_s[r, number]) / self.seconds * variable)
            for (i, stage, r), variable in self.e.items():
                if stage == k:
                    sent_s = message * float(self._choices(i, k).entry_s[r, tier])
                    terms[number].append(sent_s / self.seconds * variable)
            for (_, stage, a, b), variable in self.t.items():
                if stage == k:
                    terms[number].append(float(table.transition_s[a, b, number]) / self.seconds * variable)
        return [pulp.lpSum(terms[number]) for number in range(len(table.message_beats))]

    def _objective(self, beats) -> None:
        filling = self.problem.rhythm.filling
        filled = pulp.lpSum(w * beat for own in beats for w, beat in zip(filling, own, strict=True))
        self.program += pulp.lpSum(self.peak) + filled + self.once

    def _one_each(self) -> None:
        for i in self.layers:
            self.program += pulp.lpSum(self._on(i, k) for k in self.stages) == 1

    def _stretches(self) -> None:
        if self.problem.pieces is not None:
            for k, pieces in enumerate(self.problem.pieces):
                for i in (i for first, end in pieces for i in range(first, end)):
                    self.program += self._on(i, k) == 1
            return
        place = [pulp.lpSum(k * self._on(i, k) for k in self.stages) for i in self.layers]
        self.program += place[0] == 0
        self.program += place[-1] == self.stages[-1]
        for i in self.layers[1:]:
            self.program += place[i] - place[i - 1] >= 0
            self.program += place[i] - place[i - 1] <= 1

    def _entries(self) -> None:
        for (i, k, r), variable in self.e.items():
            self.program += variable >= self.x[i, k, r] - self._on(i - 1, k)

    def _transitions(self) -> None:
        for (i, k, a, b), variable in self.t.items():
            self.program += variable >= self._on(i - 1, k, a) + self._on(i, k, b) - 1

    def _workspaces(self) -> None:
        for (i, k, r), variable in self.x.items():
            self.program += self.w[k] >= float(self._choices(i, k).workspace_bytes[r]) / self.bytes_each * variable

    def _memory(self) -> None:
        for k in self.stages:
            flight, used = self.problem.flights[k], []
            for (i, stage, r), variable in self.x.items():
                if stage == k:
                    own = self._choices(i, k)
                    held = int(own.fixed_bytes[r]) + float(flight * int(own.flight_bytes[r]))
                    used.append(held / self.bytes_each * variable)
            for (i, stage, r), variable in self.e.items():
                if stage == k:
                    own = self._choices(i, k)
                    held = int(own.entry_bytes[r]) + float(flight * int(own.carried_bytes[r]))
                    used.append(held / self.bytes_each * variable)
            self.program += pulp.lpSum(used) + self.w[k] <= self.problem.limits_bytes[k] / self.bytes_each

    def _host(self) -> None:
        for k in self.stages:
            own = [(self._choices(i, k).host_bytes[r], v) for (i, stage, r), v in self.x.items() if stage == k]
            held = pulp.lpSum(float(host) / self.bytes_each * variable for host, variable in own)
            self.program += held <= self.problem.host_limits_bytes[k] / self.bytes_each

    def _peaks(self, beats) -> None:
        for weights, peak in zip(self.problem.rhythm.peaks, self.peak, strict=True):
            for own in beats:
                self.program += peak >= pulp.lpSum(w * beat for w, beat in zip(weights, own, strict=True))

    def _once(self) -> None:
        for k in self.stages:
            own = [(i, r, v) for (i, stage, r), v in self.x.items() if stage == k]
            self.program += self.once >= pulp.lpSum(
                float(self._choices(i, k).once_s[r]) / self.seconds * v for i, r, v in own
            )

    def _read(self, places: list[int]) -> list[tuple[tuple[int, int], ...]]:
        found: list[list[tuple[int, int]]] = [[] for _ in self.stages]
        begin = 0
        for i in self.layers:
            if i + 1 == len(places) or places[i + 1] != places[i]:
                found[places[i]].append((begin, i + 1))
                begin = i + 1
        return [tuple(stretches) for stretches in found]
