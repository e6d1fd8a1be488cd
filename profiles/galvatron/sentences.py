"""What is said to the user about what the files leave open, and in the cluster about where its numbers are from."""

from __future__ import annotations

from collections.abc import Sequence

from planner.spec.cluster import Provenance
from profiles.devices import HardwarePreset
from profiles.galvatron.calibration import Machine
from profiles.galvatron.model_profile import ModelProfile
from profiles.galvatron.selection import Offer
from profiles.galvatron.translate import Recipe, edge_degree


def sources(
    machine: Machine, preset: HardwarePreset, profile: ModelProfile, overlap_is_measured: bool
) -> tuple[str, ...]:
    """What was measured, and that all else is the preset's."""
    lines = ["levels: Galvatron's all-reduce and point-to-point bandwidths, all of which is reached"]
    if machine.device.provenance is Provenance.MEASURED:
        lines.append(
            "matmul_ratio, and the stack's loss_ratio: fitted to the seconds of Galvatron's computation profile "
            f"{profile.name} ({profile.precision})"
        )
    if overlap_is_measured:
        lines.append("overlap_slowdown_ratio: Galvatron's overlap coefficient")
    if profile.kept:
        flags = [name for name in ("casts_shards", "eager_blocks", "eager_loss") if getattr(machine.stack, name)]
        lines.append(
            f"the stack's flags ({', '.join(flags) or 'none'}) and fragmentation_ratio: nearest to Galvatron's memory "
            f"profile {profile.name}"
        )
    return (*lines, f"all else: preset {preset.name}")


def about_device(
    preset: HardwarePreset, profile: ModelProfile, overlap_is_measured: bool, reserve: int | None
) -> list[str]:
    """Of the device, what the files do not say."""
    said = [f"device: {preset.name}, whose datasheet says what Galvatron does not measure (--device chooses another)"]
    if reserve is None:
        said.append(
            f"memory that no plan may use: {preset.device.reserve_bytes / 2**30:.3g} GiB of {preset.name}; Galvatron "
            "2.1 counts 1 GiB, 3.0 none (--reserve says another)"
        )
    if not profile.passes:
        said.append(f"speed of kernels: that of {preset.name}, for there is no computation profile")
    if not profile.kept:
        said.append("memory of the stack: as fused kernels need it, for there is no memory profile")
    if not overlap_is_measured:
        said.append(f"overlap slowdown: that of {preset.name}, for there is no overlap_coefficient file")
    return said


def about_plans(offers: Sequence[Offer], recipe: Recipe, profile: ModelProfile) -> list[str]:
    """Of the plans that are taken, what their files do not say."""
    if not offers:
        return []
    said = []
    if any(degree > 1 for offer in offers for degree in (*offer.plan.tp_sizes_enc, offer.plan.vtp or 1)):
        way = "with" if recipe.sequence_parallel else "without"
        basis = "no memory profile says" if profile.sequence_parallel is None else "as the memory profile was measured"
        said.append(f"tensor parallelism: {way} sequence parallelism, {basis}; plan files do not say")
    if any(o.plan.chunks > 1 and o.plan.default_dp_type == "zero2" for o in offers) and recipe.reduces_once:
        said.append(
            "zero2 with several micro-batches: ZeRO-1, for gradients are reduced once unless async_grad_reduce is off "
            "(--reduce-each-micro-batch)"
        )
    for offer in offers:
        if offer.plan.vtp is None and (degree := edge_degree(offer.plan, recipe.num_devices)) > 1:
            said.append(f"{offer.name} does not say vtp: {degree}, so that every rank has as many samples")
    if profile.precision == "fp32":
        return [*said, "plans are for fp32: say --precision fp32 to plan and estimate"]
    formats = f"--gradient-precision {profile.precision}"
    if profile.precision != "bf16":
        formats = f"--precision {profile.precision} {formats}"
    return [
        *said,
        f"Galvatron prices gradients in {profile.precision}: say {formats} to plan and estimate to do the same",
    ]
