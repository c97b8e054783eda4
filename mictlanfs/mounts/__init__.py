"""Mounts of this machine as seen from outside: what the kernel tells of them, and their end."""
