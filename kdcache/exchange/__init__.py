"""Features computed elsewhere, into a cache and out of it: LMDB, NumPy and HDF5 files, WebDataset shards.

An imported array is keyed by the recipe, the clip's span and its own content, so every import may be repeated: what the
cache holds already is not written again, and a clip whose numbers have changed is imported anew. Exports go on where
they were stopped. ``docs/exchange.md`` shows the commands.
"""

from kdcache.exchange.export_lmdb import export_lmdb
from kdcache.exchange.export_npy import export_npy
from kdcache.exchange.export_webdataset import export_webdataset
from kdcache.exchange.exporting import ExportReport
from kdcache.exchange.import_hdf5 import import_hdf5
from kdcache.exchange.import_lmdb import import_lmdb
from kdcache.exchange.import_npy import import_npy
from kdcache.exchange.importing import ImportReport

__all__ = [
    "ExportReport",
    "ImportReport",
    "export_lmdb",
    "export_npy",
    "export_webdataset",
    "import_hdf5",
    "import_lmdb",
    "import_npy",
]
