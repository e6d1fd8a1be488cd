"""Hardware and model data with units and sources, and how they are loaded.

The data are files: `hardware/*.json` (one accelerator with its usual node and network each), `software/*.json` (one
software stack each) and `models/*.json` (one config.json with its source each).
"""

from profiles.architectures import model_names, model_preset, model_request_from_file, resolve_model
from profiles.cluster_reader import (
    cluster_data_from_shorthand,
    cluster_from_shorthand,
    cluster_request_from_file,
    on_measured_device,
)
from profiles.clusters import resolve_cluster
from profiles.devices import HardwarePreset, MeasuredProfile, device_names, device_preset
from profiles.huggingface import model_from_config, model_types
from profiles.stacks import StackPreset, stack_names, stack_preset
from profiles.units import parse_bytes

__all__ = [
    "HardwarePreset",
    "MeasuredProfile",
    "StackPreset",
    "cluster_data_from_shorthand",
    "cluster_from_shorthand",
    "cluster_request_from_file",
    "device_names",
    "device_preset",
    "model_from_config",
    "model_names",
    "model_preset",
    "model_request_from_file",
    "model_types",
    "on_measured_device",
    "parse_bytes",
    "resolve_cluster",
    "resolve_model",
    "stack_names",
    "stack_preset",
]
