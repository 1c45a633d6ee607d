# A fresh clone needs only `make run` and `make test`.

# The newest supported Python that can create a virtual environment.
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c '$(FITS)' 2>/dev/null && echo "$$python" && break; done)
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--no-header --no-emit-index-url --no-emit-find-links pyproject.toml --all-extras

.PHONY: run test check lint bench host fresh conformance lock clean

run: $(INSTALLED) .env  ## Run a development server on 127.0.0.1:8000, with a user
	@$(PY) manage.py migrate --verbosity 0
	@$(PY) manage.py develop 127.0.0.1:8000

# Three processes on two processors, since tests are idle about half of the time.
test: $(INSTALLED)  ## Run the tests
	$(PY) manage.py test --parallel 3

check: lint  ## Quick check: lint, and the fast tests, which start nothing
	$(PY) manage.py test --parallel 2 --exclude-tag machine --exclude-tag engine \
		--exclude-tag server --exclude-tag browser --exclude-tag sandbox --exclude-tag slow

lint: $(INSTALLED)  ## Check style, types, migrations and the API schema
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) manage.py makemigrations --check --dry-run
	$(PY) manage.py spectacular --validate --fail-on-warn --file /dev/null

bench: $(INSTALLED)  ## Print performance ratios of pairs measured side by side
	$(PY) -m tools.bench

host: $(INSTALLED) .env  ## Install what the backends and their tests need on this host
	$(PY) manage.py setup_backend gvisor
	$(PY) manage.py setup_backend microvm
	apt-get update --quiet
	apt-get install --quiet --yes --no-install-recommends $$($(PY) -m tests.support.needs)

fresh: $(INSTALLED)  ## Follow the quick start in fresh roots of Debian 12 and 13; as root
	$(PY) -m tests.fresh

conformance: $(INSTALLED)  ## Run third-party suites beside plain runtimes; as root, writes docs/conformance.md
	$(PY) -m tests.conformance

lock: $(INSTALLED)  ## Compile pyproject.toml and requirements.in to requirements*.txt, with hashes
	$(VENV)/bin/pip install --quiet uv
	$(COMPILE) requirements.in --output-file requirements.txt
	$(COMPILE) --constraint requirements.txt --output-file requirements-production.txt
	@for version in 3.11 3.12 3.13; do \
		echo "Checking for wheels of Python $$version …"; \
		$(VENV)/bin/uv pip install --quiet --dry-run --python-version $$version --only-binary :all: \
			--require-hashes --target $(VENV)/none --requirements requirements.txt || exit 1; \
	done

clean:  ## Remove everything that make creates
	rm -rf $(VENV) .env db.sqlite3* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.txt
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { \
		echo "Vulcan needs Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip." >&2; \
		echo "On Debian: apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@echo "Installing into $(VENV) with $$("$(PYTHON)" --version) …"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
		--requirement requirements.txt
	@touch $@

.env:
	@umask 077; $(PY) -c "import secrets; print('SECRET_KEY=' + secrets.token_urlsafe(48))" > $@
	@echo MICROVM_ACCELERATOR=any >> $@
	@echo SILENCED_SYSTEM_CHECKS=backends_app.microvm.W001 >> $@
	@echo SOURCE_DAYS=1 >> $@
	@echo METRICS_ACCESS=open >> $@
