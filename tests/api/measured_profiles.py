"""A measured profile as `trimtab profile` writes it: one processor core, from the preset that was measured so."""

from profiles import MeasuredProfile, device_preset


def measured_core(**changes: object) -> MeasuredProfile:
    """Up to eight cores of a node, no network between nodes; a few samples."""
    preset = device_preset("cpu-core")
    assert preset.stack is not None and preset.measurement is not None
    by_kind = {sample.kind: sample for sample in preset.measurement.samples}
    profile = MeasuredProfile(
        name="our-core",
        device=preset.device,
        devices_per_node=preset.devices_per_node,
        intra_node=preset.intra_node,
        stack=preset.stack,
        measurement=preset.measurement.model_copy(update={"samples": tuple(by_kind.values())}),
    )
    return profile.model_copy(update=changes)


def body_of(profile: MeasuredProfile) -> dict[str, object]:
    """As its file has it."""
    return profile.model_dump(mode="json", exclude_none=True)
