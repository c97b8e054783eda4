"""The command line: one module for each command, shared options, exit codes, output."""
