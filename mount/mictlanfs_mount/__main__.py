"""`python -m mictlanfs_mount`: the process of one mount, started by `mictlanfs mount`."""

from mictlanfs_mount.cli import serve_main

if __name__ == "__main__":
    serve_main()
