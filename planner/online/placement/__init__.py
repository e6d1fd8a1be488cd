"""Which expert sits in which slot, and how the tokens of replicas are split: arrays of all MoE layers at once.

`options` proposes, from even to more even, and counts the moves; `rules` says what may change; `assign`, `pairs`,
`refine` and `couple` are the searches behind it; `hedge` looks for broad placements while loads jump; `split` and
`shares` share tokens out among replicas; `shadows` and `copies` say what is held besides, and what is sent; `nodes` is
for routing that is limited to nodes.

Arrays: L layers, E experts, R ranks, S slots (numbered rank by rank), s = S / R. Everything is deterministic: ties go
to the lower index. Knows nothing of seconds, links or plans.
"""
