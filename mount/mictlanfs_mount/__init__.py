"""The mount: a Virtual Storage Space served to the kernel by pyfuse3 on trio."""
