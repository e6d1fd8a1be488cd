"""Files as one archive."""

from __future__ import annotations

import io
import zipfile

from planner.spec.export import Export

ZIP_TYPE = "application/zip"
_TIME = (1980, 1, 1, 0, 0, 0)
"""Of all files, the first that the format knows: equal files are an equal archive."""


def archive_of(export: Export) -> bytes:
    """A ZIP archive with the files in a folder; scripts can be run, LEFT_TO_YOU.txt lists what the files do not say."""
    folder = f"{export.target}-{export.plan_id}"
    lines = [f"Plan {export.plan_id} ({export.plan_summary}) for {export.versions}."]
    for title, told in (("Left to you:", export.left_to_user), ("Notes:", export.notes)):
        lines += ["", title, *(f"- {line}" for line in told)] if told else []
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in export.files:
            archive.writestr(_entry(f"{folder}/{file.name}"), file.text)
        archive.writestr(_entry(f"{folder}/LEFT_TO_YOU.txt"), "\n".join(lines) + "\n")
    return out.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (0o755 if name.endswith(".sh") else 0o644) << 16
    return entry
