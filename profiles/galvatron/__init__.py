"""Galvatron's profiles and plans, read into ours (docs/galvatron.md). Knows its files, and no formula."""

from profiles.galvatron.comparison import Comparison
from profiles.galvatron.imported import USUAL_DEVICE, Imported, Wishes, import_files
from profiles.galvatron.plan_file import PlanFile, plan_file
from profiles.galvatron.results import SearchResult, read_search_results
from profiles.galvatron.translate import Recipe, plan_of

__all__ = [
    "USUAL_DEVICE",
    "Comparison",
    "Imported",
    "PlanFile",
    "Recipe",
    "SearchResult",
    "Wishes",
    "import_files",
    "plan_file",
    "plan_of",
    "read_search_results",
]
