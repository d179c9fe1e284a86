"""Catalogue and sequences: what can be recommended, and what users chose."""

from genrl.catalog.dataset import Dataset, load_dataset
from genrl.catalog.items import Catalog, cold_items
from genrl.catalog.sequences import Role, Sequences

__all__ = ["Catalog", "Dataset", "Role", "Sequences", "cold_items", "load_dataset"]
