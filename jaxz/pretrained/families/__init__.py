"""Families of published weights, found by the module's name.

families/<name>.py defines

    def recognises(checkpoint) -> bool                         # whether it is of this family, and of no other
    def describe(checkpoint, arch) -> jaxz.pretrained.family.Model

of a checkpoint (jaxz.pretrained.formats.Checkpoint): tensors by name, their shapes, the config beside them. arch: what
a user says of the architecture, a flat dict, which counts before what the file says. Raises InputError for what neither
says.
"""

import importlib
import pkgutil

FAMILIES = {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}
