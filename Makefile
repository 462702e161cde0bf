# Wrappers over python commands (docs/running.md, "Without make"). They need Python 3.10 to 3.12 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_run

.PHONY: demo test soak install clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

demo: install
	$(BIN)/python scripts/demo.py --save_dir $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --timeout 300 -n logical

soak: install
	$(BIN)/python scripts/soak.py kills
	$(BIN)/python scripts/soak.py memory

clean:
	rm -rf $(VENV) $(DEMO) $(DEMO)-*
