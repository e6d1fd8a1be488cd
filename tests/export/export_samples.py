"""Plans to export, and clusters of the size that they need."""

from __future__ import annotations

import subprocess
import warnings
from contextlib import contextmanager
from math import gcd

from planner.export import export_plan
from planner.export.job import Job
from planner.search import plan_from_shorthand
from planner.spec.export import Export, ExportTarget
from planner.spec.plan import Plan
from planner.spec.training import Training
from profiles import cluster_request_from_file, model_preset, resolve_cluster

SMALL = Training(global_batch_size=64, sequence_length=4096)


def cluster_of(num_devices: int):
    """Nodes of eight devices, or of as many as leave no rest."""
    per_node = gcd(num_devices, 8)
    return resolve_cluster(cluster_request_from_file(f"{num_devices // per_node}x{per_node}:h100-sxm-80g"))


def job_of(model, training: Training, plan: Plan) -> Job:
    """The job on as many devices as the plan has."""
    return Job(model, cluster_of(plan.num_devices), training, plan)


def named(preset: str, shorthand: str, devices: int = 8, training: Training = SMALL) -> Job:
    """A preset's model under a plan in shorthand."""
    model, cluster = model_preset(preset), cluster_of(devices)
    return Job(model, cluster, training, plan_from_shorthand(shorthand, model, cluster, training))


def exported(target: ExportTarget, job: Job) -> Export:
    """The files of a job."""
    return export_plan(target, job.model, job.cluster, job.training, job.plan)


def text_of(export: Export, name: str) -> str:
    """One of the files."""
    return next(file.text for file in export.files if file.name == name)


@contextmanager
def quietly():
    """Imports of frameworks warn of what they lack here, and of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bash_words(text: str, *names: str) -> list[str]:
    """What arrays of a script hold when bash has read it, in the order of the names."""
    shown = " ".join(f'"${{{name}[@]}}"' for name in names)
    script = f"{text}\nprintf '%s\\0' {shown}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert not done.stderr
    return [word for word in done.stdout.split("\0") if word]


def is_bash(text: str) -> bool:
    """Whether bash can read a script, which it does not run."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode == 0
