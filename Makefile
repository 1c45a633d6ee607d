# `make run` and `make test` are all that a fresh clone needs.

PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TEST_PACKAGES := busybox-static docker-registry podman crun catatonit redis-server postgresql \
	iproute2 gcc libc6-dev chromium prometheus systemd

.PHONY: run test lint bench host lock clean

run: $(INSTALLED) .env  ## Serve on 127.0.0.1:8000 with a development user
	@$(PY) manage.py migrate --verbosity 0
	@$(PY) manage.py develop 127.0.0.1:8000

test: $(INSTALLED)  ## Run the tests
	$(PY) manage.py test --parallel 2

lint: $(INSTALLED)  ## Style, types, migrations and the API's own schema
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PY) manage.py makemigrations --check --dry-run
	$(PY) manage.py spectacular --validate --fail-on-warn --file /dev/null

bench: $(INSTALLED)  ## Ratios of things measured side by side
	$(PY) -m tests.bench

host: $(INSTALLED) .env  ## Install what the backends need on this host, and what their tests need
	$(PY) manage.py setup_backend gvisor
	$(PY) manage.py setup_backend microvm
	apt-get install --yes --no-install-recommends $(TEST_PACKAGES)

lock: $(INSTALLED)  ## Compile requirements.in to requirements.txt
	$(VENV)/bin/pip install --quiet uv
	$(VENV)/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-header \
		--no-emit-index-url --no-emit-find-links requirements.in --output-file requirements.txt

clean:  ## Remove everything that make has made
	rm -rf $(VENV) .env db.sqlite3* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(INSTALLED): requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "Vulcan needs Python 3.11: set PYTHON=…" >&2; exit 1; }
	@echo "Installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.env:
	@umask 077; $(PY) -c "import secrets; print('SECRET_KEY=' + secrets.token_urlsafe(48))" > $@
	@echo MICROVM_ACCELERATOR=any >> $@
	@echo SILENCED_SYSTEM_CHECKS=backends_app.microvm.W001 >> $@
	@echo SOURCE_DAYS=1 >> $@
	@echo METRICS_ACCESS=open >> $@
