# Everything a user or developer does with a checkout. `make` alone lists the targets; ARGS="..." adds arguments.

.DEFAULT_GOAL := help
# The prerequisites below have an order (test lints first), and their output would mix.
.NOTPARALLEL:
# The tests alone start some thousand processes, and each would compile the whole of our code again.
unexport PYTHONDONTWRITEBYTECODE

# Tests wait for leases, servers and disks half of their time: so many at once keep two cores busy. Those of one file
# stay together, since they share servers and mounts; the long ones come first, so that all end at the same time.
at_once = -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: help setup run demo test lint format model history fsx torture soak bench clean

help: ## list the targets
	@echo 'Usage: make TARGET [ARGS="..."]'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 12

setup: ## install what is missing, make .venv (every target below does this first)
	@.ci/setup

# In `run`, `demo` and `bench` the program takes the place of the shell, so that Ctrl-C and SIGTERM reach it and make
# waits until it has stopped in order.
run: setup ## start a space on this machine and mount it at ./vss until Ctrl-C
	@exec .venv/bin/mictlanfs up $(ARGS)

demo: setup ## show what it can do, in a space that is removed afterwards
	@exec .venv/bin/python tests/demo.py $(ARGS)

test: lint ## lint, then run the tests (ARGS="-k name" selects)
	.venv/bin/pytest $(at_once) $(ARGS)

lint: setup ## check style, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup ## mend what the tools can mend, and format
	.venv/bin/ruff check --fix-only .
	.venv/bin/ruff format .

model: setup ## do the same at random to a mount and a local folder (ARGS="--minutes 30 --seed 7")
	@exec .venv/bin/python -m tests.stateful.mounted_model $(ARGS)

history: setup ## call at random on three mounts and look for an order of it (ARGS="--minutes 30 --seed 7")
	@exec .venv/bin/python -m tests.stateful.history $(ARGS)

fsx: setup ## read, write, truncate and map files at random (ARGS="--operations 100000 --seed 7")
	@exec .venv/bin/python -m tests.stateful.fsx $(ARGS)

torture: setup ## kill and cut the power 200 and 120 times (ARGS="--cycles 20 --cuts 10 --seed 7")
	@exec .venv/bin/python -m tests.faults.torture $(ARGS)

soak: setup ## work for 30 minutes with a fault every 20 s, see whether anything grows (ARGS="--minutes 5")
	@exec .venv/bin/python -m tests.faults.soak $(ARGS)

bench: setup ## measure (ARGS="--profile stream-read" says where the time goes)
	@exec .venv/bin/python -m tests.benchmarks $(ARGS)

clean: ## remove .venv, caches and build output (not ./vss-data: it is data)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist
	@# Only our own folders: ./vss may be a mounted file system.
	find mictlanfs server mount tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -e vss-data ]; then echo 'Kept ./vss-data: it holds data. Remove it yourself if you want it gone.'; fi
