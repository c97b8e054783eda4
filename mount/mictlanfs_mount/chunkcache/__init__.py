"""The mount's two-level cache of chunks; `cache` is the part that the rest of the mount uses."""
