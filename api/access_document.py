"""What the OpenAPI document says of tokens: which roles an operation needs, and how it refuses."""

from __future__ import annotations

from typing import Any

from api.access import SAFE_METHODS, allowed
from api.routes.parameters import problems

SCHEME = "token"
DESCRIPTION = """
Where this service requires tokens: one that `trimtab token create NAME --role read` has printed, as
`Authorization: Bearer ttk_…`. The roles are `read`, `submit` (which may read too) and `report` (for agents in training
jobs: begins runs, posts windows, reads runs); each operation names those of which one is enough.
"""


def declare_access(schema: dict[str, Any]) -> None:
    """Write security and its refusals into every operation of the document."""
    schema["components"].setdefault("securitySchemes", {})[SCHEME] = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "ttk_<id>_<secret>",
        "description": DESCRIPTION.strip(),
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _declare(method.upper(), path, operation)


def _declare(method: str, path: str, operation: dict[str, Any]) -> None:
    roles = sorted(allowed(method, path).roles)
    operation["security"] = [{SCHEME: [role]} for role in roles]
    if not roles and method in SAFE_METHODS:
        return
    for status in (401, 403, 429):
        problem = {**problems(status)[status]}
        del problem["model"]
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
        operation["responses"].setdefault(str(status), {**problem, "content": content})
    if roles:
        operation["description"] += f"\n\nNeeds a token with the role {' or '.join(f'`{role}`' for role in roles)}."
