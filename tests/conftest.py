import os

# The suite measures laws, not devices: one CPU device, whatever the machine has, unless the caller chose otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
