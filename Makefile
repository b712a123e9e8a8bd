# Two commands on a fresh clone: `make demo` and `make test`. Both set up .venv first (scripts/run.py).
PYTHON ?= python3

.PHONY: demo test lint clean

demo test lint:
	@$(PYTHON) scripts/run.py $@

clean:
	rm -rf .venv demo.png
