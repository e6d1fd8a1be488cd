"""How sure a shortlist is, in sentences."""

from __future__ import annotations

from planner.spec.shortlist import Certificate, CertificateStatus, Shortlist
from planner.view.quantities import percent, seconds


def certificate_line(shortlist: Shortlist) -> str:
    """How sure the answer is, and in what space."""
    certificate = shortlist.certificate
    removed = sum(certificate.pruned.values())
    families = "family" if certificate.evaluated == 1 else "families"
    effort = (
        f"{certificate.evaluated:,} {families} of plans solved beyond their bounds, {removed:,} candidates removed by "
        f"named rules, in {seconds(shortlist.search_time_s)}"
    )
    return f"{_sureness(certificate)} in the space; {effort}.\nSpace: {certificate.space}."


def _sureness(certificate: Certificate) -> str:
    if certificate.status is CertificateStatus.OPTIMAL:
        return "Certificate: optimal; nothing is faster"
    bound, gap = seconds(certificate.lower_bound_s), percent(certificate.gap_ratio)
    return f"Certificate: bounded; nothing is faster than {bound} per step, the best plan is {gap} above that"
