"""Results on disk (`write`, `read`) and the state of interrupted runs (`RunState`)."""

from brecq.checkpoint.directory import Checkpoint, read, write
from brecq.checkpoint.packing import pack, packed_size, unpack
from brecq.checkpoint.resume import RunState, fingerprint
from brecq.checkpoint.tensors import IntegerTensor, PackedWeight, collect_tensors

__all__ = [
    "Checkpoint",
    "IntegerTensor",
    "PackedWeight",
    "RunState",
    "collect_tensors",
    "fingerprint",
    "pack",
    "packed_size",
    "read",
    "unpack",
    "write",
]
