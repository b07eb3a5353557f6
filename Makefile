# Every command of the project. `make help` lists them.
# All paths are relative, and tools are called as `python -m …`: a folder whose name has a space is fine.

PYTHON  ?= python3
PROFILE ?= book
DEVICE  ?= auto
JOBS    ?= 2
PORT    ?= 8000
CHAPTER ?= 01
LANGUAGE ?= de

VENV  := .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
DEV   := $(VENV)/.ready-dev
CODE  := smlmtut tools tests benchmarks

export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help book pdf preview notebooks test fakegpu gpu lint format questions colab colab-check course slides offline translation browser serve clean distclean
.DELETE_ON_ERROR:

help:  ## list the commands
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

book: $(READY)  ## run the chapters that changed, then build the book (PROFILE=book, JOBS=2)
	$(PY) tools/run_chapters.py --profile $(PROFILE) --device $(DEVICE) --jobs $(JOBS) --seed-cache
	$(PY) tools/build_book.py

pdf: $(READY)  ## the book as one PDF, _build/pdf/smlmtut.pdf, by LaTeX (after `make book`, whose runs it takes)
	$(PY) tools/run_chapters.py --profile $(PROFILE) --device $(DEVICE) --jobs $(JOBS) --seed-cache
	$(PY) tools/pdf.py
	$(PY) -m pytest -m pdf tests/test_pdf.py

notebooks: $(READY)  ## run every chapter, without building the book (PROFILE=smoke|book|full, DEVICE=auto)
	$(PY) tools/run_chapters.py --profile $(PROFILE) --device $(DEVICE) --jobs $(JOBS) --force

preview: $(READY)  ## run and build one chapter alone, for a look (CHAPTER=01)
	$(PY) tools/preview.py $(CHAPTER) --profile $(PROFILE)

test: $(READY)  ## run the tests, the chapters in profile smoke among them
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -m "not browser and not pdf"

fakegpu: $(READY)  ## run every chapter on a device that is not the CPU, on any machine
	FAKEGPU=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal tests/test_fake_chapters.py

gpu: $(READY)  ## every chapter and benchmark on this machine's GPU, into gpu-report.md (PROFILE=smoke|book|full)
	$(PY) -m tools.gpu_report --profile $(PROFILE)

browser: $(READY)  ## test the built book and two decks of slides in Chromium (after `make book`)
	$(PY) -m pytest -m browser tests/test_browser.py tests/test_slides.py

questions: $(READY)  ## write the question bank for Moodle, Canvas and Jupyter, and the chapters' self-tests
	$(PY) -m tools.questions --output _build/questions --chapters

colab: $(READY)  ## write the Colab edition, notebooks/*.ipynb
	$(PY) -m tools.colab

colab-check: $(READY)  ## fail if the Colab edition is not what the chapters say
	$(PY) -m tools.colab --check

course: $(READY)  ## write the student and the instructor edition of every chapter, _build/course/ (PIN=v0.2.0: of a release)
	$(PY) -m tools.course $(if $(PIN),--pin $(PIN))

slides: $(READY)  ## run the chapters that changed, then write a deck of slides for each, _build/slides/
	$(PY) tools/run_chapters.py --profile $(PROFILE) --device $(DEVICE) --jobs $(JOBS)
	$(PY) -m tools.slides --profile $(PROFILE)

offline: book course slides  ## all that a class without a network needs, in one archive (WHEELS=1: with the packages)
	$(PY) -m tools.questions --output _build/questions
	$(PY) -m tools.offline $(if $(WHEELS),--wheels)

translation: book  ## the book in another language, as far as it is translated (LANGUAGE=de)
	$(PY) -m tools.translate $(LANGUAGE)

lint: $(DEV)  ## style, types, imports, spelling, workflows, environment.yml
	$(PY) -m ruff check $(CODE) notebooks
	$(PY) -m ruff format --check $(CODE) notebooks
	$(PY) -m pyright
	$(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache
	$(PY) -m codespell_lib . --toml pyproject.toml
	$(PY) -m check_jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(PY) -m check_jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(PY) tools/environment.py --check

format: $(DEV)  ## let ruff format the code, that of the chapters too
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)
	$(PY) tools/format_chapters.py

serve: book  ## build the book and serve it on http://localhost:8000 (PORT=8000)
	$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

clean:  ## remove what was built; keep the virtual environment
	rm -rf _build .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the virtual environment too
	rm -rf $(VENV)

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "smlmtut needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(PY) || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes."
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(DEV): $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
