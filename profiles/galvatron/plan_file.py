"""Galvatron's plan files: what each key may be, in all spellings. Knows no plan of ours.

Source: PKU-DAIR/Hetu-Galvatron, utils/config_utils.py (config2strategy) and the search engines of v2.1, v2.4 and 3.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from planner.spec.errors import InputError
from planner.spec.parse import parse
from planner.spec.value import Count, Value

Flag = Annotated[int, Field(strict=True, ge=0, le=1)]


def _numbers(text: object) -> object:
    """`"1,2,2"` as the numbers it lists; anything else as it is, to be refused."""
    if not isinstance(text, str):
        return text
    parts = [part.strip() for part in text.split(",")]
    return tuple(int(part) if part.isdecimal() else part for part in parts)


Degrees = Annotated[tuple[Count, ...], BeforeValidator(_numbers), Field(min_length=1)]
Flags = Annotated[tuple[Flag, ...], BeforeValidator(_numbers), Field(min_length=1)]


class PlanFile(Value):
    """One plan as Galvatron writes it: lists have an entry for each block; embedding and head have keys of their
    own."""

    pp_deg: Count
    tp_sizes_enc: Degrees
    tp_consecutive_flags: Flags
    """1: tensor-parallel ranks are neighbours; 0: data-parallel ranks are."""
    dp_types_enc: Flags
    """1: ZeRO-3; 0: `default_dp_type`."""
    checkpoint: Flags
    use_sp: Flags
    """1: the degree of `tp_sizes_enc` is one of Ulysses, not of tensor parallelism."""
    cp_sizes_enc: Degrees
    ep_sizes_enc: Degrees
    tp_of_ep_sizes_enc: Degrees
    global_bsz: Count
    chunks: Count
    pp_division: Degrees
    pipeline_type: Literal["gpipe", "pipedream_flush"]
    default_dp_type: Literal["ddp", "zero2"]
    vtp: Count | None = None
    """Degree in which embedding and head are cut, along the vocabulary or, with `vsp`, along the sequence; None: the
    file is of a version that does not cut them."""
    vsp: Flag = 0
    vcp: Count = 1
    embed_sdp: Flag = 0
    """1: embedding and head are under ZeRO-3."""
    world_size: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, data: Any) -> Any:
        """Lists that a file leaves out say for every block what Galvatron's reader takes for them."""
        if not isinstance(data, Mapping) or not isinstance(sizes := data.get("tp_sizes_enc"), str):
            return data
        blocks = sizes.count(",") + 1
        absent = {"tp_consecutive_flags": 1, "checkpoint": 0, "use_sp": 0}
        absent |= dict.fromkeys(("cp_sizes_enc", "ep_sizes_enc", "tp_of_ep_sizes_enc"), 1)
        return {**{key: (value,) * blocks for key, value in absent.items()}, **data}

    @model_validator(mode="after")
    def _lists_agree(self) -> PlanFile:
        blocks = len(self.tp_sizes_enc)
        for name in _LISTS:
            if len(getattr(self, name)) != blocks:
                raise ValueError(
                    f"{name}: must have an entry for each of the {blocks} blocks of tp_sizes_enc, "
                    f"has {len(getattr(self, name))}"
                )
        if len(self.pp_division) != self.pp_deg or sum(self.pp_division) != blocks:
            raise ValueError(
                f"pp_division: must have pp_deg ({self.pp_deg}) entries that sum to the {blocks} blocks, "
                f"has {len(self.pp_division)} that sum to {sum(self.pp_division)}"
            )
        return self

    @property
    def num_blocks(self) -> int:
        """Transformer blocks of the model that it is for."""
        return len(self.tp_sizes_enc)


_LISTS = (
    "tp_consecutive_flags",
    "dp_types_enc",
    "checkpoint",
    "use_sp",
    "cp_sizes_enc",
    "ep_sizes_enc",
    "tp_of_ep_sizes_enc",
)


def plan_file(data: Mapping[str, Any], field: str) -> PlanFile:
    """The plan in the content of a file; raises InputError that names the key under `field`.

    The search writes `embed_sdp`, the runtime reads `vocab_sdp`; either is taken, but not two that differ.
    """
    content = dict(data)
    runtime = content.pop("vocab_sdp", None)
    if runtime is not None and content.setdefault("embed_sdp", runtime) != runtime:
        raise InputError.at(
            f"{field}.vocab_sdp", f"must be what embed_sdp is, {content['embed_sdp']!r:.20}, got {runtime!r:.20}"
        )
    return parse(PlanFile, content, field)
